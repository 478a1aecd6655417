"""The config of the stage that trains the small models that ship."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.errors import UserError
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.checks import at_least, between


@dataclass(frozen=True)
class ArchConfig:
    """Shape of a model to pretrain.

    Args:
        family: `llama`, `mistral` or `qwen2`: decides the layer's details and the files written.
        width: width of the residual stream.
        layers: number of layers.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: width of a head.
        mlp_width: hidden width of the gated MLP.
        rope_theta: RoPE base.
        window: sliding window (mistral); null for none.
        tied: the output head is the embedding table.
        max_positions: context length announced in the files.
    """

    family: Literal["llama", "mistral", "qwen2"]
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10000.0
    window: int | None = None
    tied: bool = False
    max_positions: int = 1024

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "layers", "heads", "kv_heads", "mlp_width", "max_positions")
        at_least(self, 1, "rope_theta", "window")
        if self.heads % self.kv_heads:
            raise UserError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"head_dim: RoPE turns pairs, so it must be even; got {self.head_dim}")
        if self.window is not None and self.family != "mistral":
            raise UserError(f"window: only mistral has one; the family is {self.family}")


@dataclass(frozen=True)
class TokenizerConfig:
    """A byte-level BPE to train.

    Args:
        vocab_size: entries, special tokens included.
        single_digits: every digit is a token.
        samples: number of texts of the mixture that it is trained on.
    """

    vocab_size: int
    single_digits: bool = False
    samples: int = 20000

    def __post_init__(self) -> None:
        at_least(self, 260, "vocab_size")  # 256 bytes and the special tokens
        at_least(self, 1, "samples")


@dataclass(frozen=True)
class PretrainConfig:
    """A stage that trains one of the small models that ship, and writes a Hugging Face directory.

    Args:
        out: directory to write.
        arch, tokenizer: the model.
        steps, batch_size, optimiser, workers: as in a train stage.
        max_tokens: longer texts are left out (and counted).
        facts, facts_copy, gsm8k_copy, gsm8k_solve: shares of the text tasks.
        gsm8k_train: local file, or hub name, of the GSM8K training set; needed if a share is set.
        gsm8k_eval: local file, or hub name, of rows to read back in the final test.
        questions: number of questions on a context of facts in one text.
        shared: share of the contexts in which all people have the same kinds of facts, so that the
            person asked about matters; without them that is learned late or never.
        rest_weight, written_weight: loss weights of the tokens of a text, and of a copy or
            solution; tokens of a question's answer have weight 1.
        log_every, save_every: steps between log lines and checkpoints.
        eval_rows: facts questions (6 sentences, held-out words) in the final test.
    """

    out: str
    arch: ArchConfig
    tokenizer: TokenizerConfig
    steps: int
    batch_size: int = 128
    max_tokens: int = 512
    optimiser: OptimiserConfig = OptimiserConfig(name="muon", lr=0.02)
    facts: float = 0.6
    facts_copy: float = 0.1
    gsm8k_copy: float = 0.2
    gsm8k_solve: float = 0.1
    gsm8k_train: str | None = None
    gsm8k_eval: str | None = None
    questions: int = 6
    shared: float = 0.6
    rest_weight: float = 0.1
    written_weight: float = 0.3
    log_every: int = 50
    save_every: int = 1000
    eval_rows: int = 1000
    workers: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "max_tokens", "questions")
        at_least(self, 1, "log_every", "save_every")
        at_least(self, 0, "workers", "rest_weight", "written_weight", "eval_rows")
        between(self, 0, 1, "facts", "facts_copy", "gsm8k_copy", "gsm8k_solve")
        between(self, 0, 1, "shared")
        total = self.facts + self.facts_copy + self.gsm8k_copy + self.gsm8k_solve
        if abs(total - 1) > 1e-6:
            raise UserError(
                f"facts: the shares facts, facts_copy, gsm8k_copy and gsm8k_solve must add up "
                f"to 1; they add up to {total:g}"
            )
        if self.gsm8k_copy + self.gsm8k_solve > 0 and self.gsm8k_train is None:
            raise UserError("gsm8k_train: missing; gsm8k_copy and gsm8k_solve need its rows")
