"""The config of the stage that trains the small models that ship."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from lw_jax.errors import UserError
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.bounds import (
    BatchSize,
    Checked,
    Heads,
    Layers,
    Location,
    Questions,
    RowsOrNone,
    Share,
    Steps,
    Tokens,
    Weight,
    Width,
    Workers,
)


@dataclass(frozen=True)
class ArchConfig(Checked):
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
    width: Width
    layers: Layers
    heads: Heads
    kv_heads: Heads
    head_dim: Annotated[int, Ge(2), Le(1024)]
    mlp_width: Annotated[int, Ge(1), Le(2**18)]
    rope_theta: Annotated[float, Ge(1), Le(10**9)] = 10000.0
    window: Tokens | None = None
    tied: bool = False
    max_positions: Tokens = 1024

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.head_dim % 2:
            raise UserError(f"head_dim: RoPE turns pairs, so it must be even; got {self.head_dim}")
        if self.window is not None and self.family != "mistral":
            raise UserError(f"window: only mistral has one; the family is {self.family}")


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """A byte-level BPE to train.

    Args:
        vocab_size: entries, special tokens included.
        single_digits: every digit is a token.
        samples: number of texts of the mixture that it is trained on.
    """

    vocab_size: Annotated[int, Ge(260), Le(2**20)]
    single_digits: bool = False
    samples: Annotated[int, Ge(1), Le(10**7)] = 20000


@dataclass(frozen=True)
class PretrainConfig(Checked):
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

    out: Location
    arch: ArchConfig
    tokenizer: TokenizerConfig
    steps: Steps
    batch_size: BatchSize = 128
    max_tokens: Tokens = 512
    optimiser: OptimiserConfig = OptimiserConfig(name="muon", lr=0.02)
    facts: Share = 0.6
    facts_copy: Share = 0.1
    gsm8k_copy: Share = 0.2
    gsm8k_solve: Share = 0.1
    gsm8k_train: Location | None = None
    gsm8k_eval: Location | None = None
    questions: Questions = 6
    shared: Share = 0.6
    rest_weight: Weight = 0.1
    written_weight: Weight = 0.3
    log_every: Steps = 50
    save_every: Steps = 1000
    eval_rows: RowsOrNone = 1000
    workers: Workers = 0

    def __post_init__(self) -> None:
        if not (self.facts or self.rest_weight or self.written_weight):
            raise UserError("facts: nothing is trained without facts, rest_weight, written_weight")
        total = self.facts + self.facts_copy + self.gsm8k_copy + self.gsm8k_solve
        if abs(total - 1) > 1e-6:
            raise UserError(
                f"facts: the shares facts, facts_copy, gsm8k_copy and gsm8k_solve must add up "
                f"to 1; they add up to {total:g}"
            )
        if self.gsm8k_copy + self.gsm8k_solve > 0 and self.gsm8k_train is None:
            raise UserError("gsm8k_train: missing; gsm8k_copy and gsm8k_solve need its rows")
