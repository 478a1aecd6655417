"""The typed form of a config file. Variants of a stage come from the stage's own folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lw_jax.config.layout import LayoutConfig
from lw_jax.errors import UserError
from lw_jax.registry import choice, chosen
from lw_jax.schedule import Schedule

SourceConfig = choice("SourceConfig", "lw_jax.sources", "The source: exactly one is set.")
CompressorConfig = choice(
    "CompressorConfig", "lw_jax.compressors", "The compressor: exactly one is set."
)
BottleneckConfig = choice(
    "BottleneckConfig", "lw_jax.bottlenecks", "The bottleneck: at most one is set."
)
ReaderConfig = choice("ReaderConfig", "lw_jax.readers", "The readers: one or several are set.")
ObjectivesConfig = choice(
    "ObjectivesConfig", "lw_jax.objectives", "The objectives: one or several are set."
)
DataConfig = choice("DataConfig", "lw_jax.data", "The rows: exactly one is set.")


@dataclass(frozen=True)
class ModelConfig:
    """A frozen language model.

    Args:
        path: directory in Hugging Face format, or hub name.
        dtype: storage and compute type.
        quant: storage of the matrices; `none` keeps `dtype`.
        attention: `xla` anywhere, `cudnn` on NVIDIA GPUs in bfloat16.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quant: Literal["none", "int8", "nf4"] = "none"
    attention: Literal["xla", "cudnn"] = "xla"


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh, axes `data` and `model`.

    Args:
        data: devices over which rows (and, with `fsdp`, frozen weights) are split; -1 for the rest.
        model: devices over which heads and MLP columns are split.
        fsdp: split the frozen weights over `data` as well.
    """

    data: int = -1
    model: int = 1
    fsdp: bool = False


@dataclass(frozen=True)
class BridgeConfig:
    """The trainable bridge: compressor, bottleneck and readers over a source.

    Args:
        latent_dim: width d_z of a slot.
        source, compressor, bottleneck, reader: the parts.
    """

    latent_dim: int
    source: SourceConfig  # type: ignore[valid-type]
    compressor: CompressorConfig  # type: ignore[valid-type]
    reader: ReaderConfig  # type: ignore[valid-type]
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        _one("bridge.source", self.source)
        _one("bridge.compressor", self.compressor)
        if not chosen(self.reader):
            raise UserError("bridge.reader: none is set; set one or several of its variants")
        if len(chosen(self.bottleneck)) > 1:
            _one("bridge.bottleneck", self.bottleneck)


@dataclass(frozen=True)
class OptimiserConfig:
    """The optax chain: clip, AdamW or Muon with Adam for what is no matrix, schedule.

    Args:
        name: `adamw`, or `muon` (matrices by Muon; queries, positions, norms, biases by Adam).
        lr: peak learning rate (of Muon's matrices when `name` is `muon`).
        adam_lr: peak rate of the leaves that Muon leaves to Adam; null: a fifth of `lr`.
        weight_decay: decoupled, on matrices only.
        clip: global gradient norm above which gradients are scaled down; 0 for never.
        schedule: factor of the peak over the steps of the stage.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    adam_lr: float | None = None
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Schedule = Schedule(shape="cosine", ramp=100, final=0.05)


@dataclass(frozen=True)
class Level:
    """A part of a curriculum: rows of `level`, for this share of the stage's steps."""

    level: int
    share: float


@dataclass(frozen=True)
class TrainConfig:
    """A stage that trains the bridge.

    Args:
        steps: optimiser steps.
        batch_size: contexts in a step (all microbatches together).
        accumulate: microbatches per step.
        questions: questions asked of each context in a step.
        curriculum: levels of the rows in order, shares adding up to 1; empty: as the data says.
        optimiser: the optimiser.
        objectives: replaces the config's objectives in this stage.
        train_only: regular expressions on parameter paths; empty: all are trained.
        init_from: run directory of another run whose bridge parameters to start from.
        ema: decay of the averaged parameters that are evaluated; null for none.
        log_every, eval_every, save_every: steps between log lines, quick evaluations (0: never)
            and checkpoints.
        eval_rows: rows of the quick evaluation (latent and deranged).
        keep: latest checkpoints to keep, beside the best.
        workers: processes that prepare batches; 0: in process.
    """

    steps: int
    batch_size: int = 32
    accumulate: int = 1
    questions: int = 1
    curriculum: tuple[Level, ...] = ()
    optimiser: OptimiserConfig = OptimiserConfig()
    objectives: ObjectivesConfig | None = None  # type: ignore[valid-type]
    train_only: tuple[str, ...] = ()
    init_from: str | None = None
    ema: float | None = None
    log_every: int = 20
    eval_every: int = 200
    save_every: int = 200
    eval_rows: int = 128
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.curriculum and abs(sum(c.share for c in self.curriculum) - 1) > 1e-6:
            raise UserError("curriculum: the shares must add up to 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}"
            )


@dataclass(frozen=True)
class CalibrateConfig:
    """A stage that measures statistics of the frozen models (SPEC section 4).

    Args:
        rows: training rows read.
        batch_size: rows in a step.
    """

    rows: int = 500
    batch_size: int = 32


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding (SPEC section 8, decode controls). Greedy unless a temperature is given.

    Args:
        max_new_tokens: tokens decoded at most.
        min_new_tokens: EOS is forbidden before so many.
        eos_ban_steps: steps from the start in which EOS is forbidden.
        temperature, top_p: sampling; temperature 0 is greedy.
        first_token_temperature, first_token_top_p: the same, for the first token alone.
        first_token_stop_list: strings whose tokens cannot come first.
        prefix_gain: gain on what is delivered, per decode step; the last one holds.
    """

    max_new_tokens: int = 12
    min_new_tokens: int = 0
    eos_ban_steps: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    first_token_temperature: float = 0.0
    first_token_top_p: float = 1.0
    first_token_stop_list: tuple[str, ...] = ()
    prefix_gain: tuple[float, ...] = (1.0,)


METHODS = (
    "text",
    "latent",
    "token_budget_first",
    "token_budget_last",
    "embedding_replay_raw",
    "no_message",
    "zero",
    "mean",
    "deranged",
)
"""Methods and controls of an evaluation (SPEC section 8), in the order of the table."""

CONTROLS = ("no_message", "zero", "mean", "deranged")
"""Always run: without them a figure for `latent` says nothing."""


@dataclass(frozen=True)
class EvaluateConfig:
    """A stage that compares methods on the same held-out rows (SPEC section 8).

    Args:
        methods: methods to run; the controls are always run with `latent`.
        rows: rows (questions) evaluated; 0 for all.
        batch_size: rows at once.
        checkpoint: `last` or `best` of the stage before.
        decode: decoding.
        data: other rows than the config's; null for the config's.
        seed: seed of the rows' order and of the bootstrap.
        bootstrap: resamples for the 95 % intervals.
    """

    methods: tuple[str, ...] = METHODS
    rows: int = 1000
    batch_size: int = 64
    checkpoint: Literal["last", "best"] = "last"
    decode: DecodeConfig = DecodeConfig()
    data: DataConfig | None = None  # type: ignore[valid-type]
    seed: int = 12345
    bootstrap: int = 2000

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise UserError(f"methods: unknown {unknown[0]!r}; one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class ArchConfig:
    """Shape of a model to pretrain.

    Args:
        family: `llama`, `mistral` or `qwen2`: decides the layer's details and the files written.
        width, layers, heads, kv_heads, head_dim, mlp_width: as usual.
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


@dataclass(frozen=True)
class TokenizerConfig:
    """A byte-level BPE to train.

    Args:
        vocab_size: entries, special tokens included.
        single_digits: every digit is a token.
        samples: texts of the mixture that it is trained on.
    """

    vocab_size: int
    single_digits: bool = False
    samples: int = 20000


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
        rest_weight: loss weight of tokens that are not the answer.
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
    rest_weight: float = 0.3
    log_every: int = 50
    save_every: int = 1000
    eval_rows: int = 1000
    workers: int = 0


@dataclass(frozen=True)
class StageConfig:
    """One stage: exactly one of the four kinds is set."""

    pretrain: PretrainConfig | None = None
    calibrate: CalibrateConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None

    def __post_init__(self) -> None:
        _one("stages.<name>", self)


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        name: names the run directory, `runs/<name>`, unless `run_dir` is given.
        stages: the stages by name, run in this order.
        seed: seed of everything random.
        run_dir: where the run's files go.
        sender: the frozen sender; null for sources that need none.
        receivers: the frozen receivers by name.
        layout, data, bridge, objectives: what is trained on what.
        mesh: the device mesh.
    """

    name: str
    stages: dict[str, StageConfig]
    seed: int = 42
    run_dir: str | None = None
    sender: ModelConfig | None = None
    receivers: dict[str, ModelConfig] = field(default_factory=dict)
    layout: LayoutConfig = LayoutConfig()
    data: DataConfig | None = None  # type: ignore[valid-type]
    bridge: BridgeConfig | None = None
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)  # type: ignore[valid-type]
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("stages: none is given; name at least one")
        kinds = {kind for stage in self.stages.values() for kind in chosen(stage)}
        if kinds - {"pretrain"}:
            if not self.receivers:
                raise UserError("receivers: none is given; name at least one frozen receiver")
            if self.bridge is None:
                raise UserError("bridge: missing; a train, calibrate or evaluate stage needs it")
            if self.data is None:
                raise UserError("data: missing; a train, calibrate or evaluate stage needs it")
            _one("data", self.data)
        for name, stage in self.stages.items():
            if stage.train and not chosen(stage.train.objectives or self.objectives):
                raise UserError(f"objectives: none is set, and stages.{name}.train needs one")


def _one(where: str, options: object) -> None:
    names = list(chosen(options))
    if len(names) != 1:
        known = ", ".join(options.__dataclass_fields__)  # type: ignore[attr-defined]
        got = "none is set" if not names else f"{' and '.join(names)} are set"
        raise UserError(f"{where}: {got}; set exactly one of {known}")
