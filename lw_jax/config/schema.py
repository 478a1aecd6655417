"""The typed form of a config file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from lw_jax.config.calibration import check_calibrated
from lw_jax.config.checks import at_least, between, exactly_one
from lw_jax.config.evaluation import CONTROLS, METHODS, DecodeConfig, EvaluateConfig
from lw_jax.config.layout import LayoutConfig
from lw_jax.config.optimiser import OptimiserConfig
from lw_jax.config.parts import BridgeConfig, DataConfig, ObjectivesConfig
from lw_jax.config.pretraining import ArchConfig, PretrainConfig, TokenizerConfig
from lw_jax.errors import UserError
from lw_jax.registry import chosen
from lw_jax.schedule import LatentKeep, ScheduledSampling, TextBatches

__all__ = [
    "CONTROLS",
    "METHODS",
    "ArchConfig",
    "BridgeConfig",
    "CalibrateConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "EvaluateConfig",
    "LayoutConfig",
    "Level",
    "MeshConfig",
    "ModelConfig",
    "ObjectivesConfig",
    "OptimiserConfig",
    "PretrainConfig",
    "StageConfig",
    "TokenizerConfig",
    "TrainConfig",
]

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"


@dataclass(frozen=True)
class ModelConfig:
    """A frozen language model, or the sentence encoder that a source reads.

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
        data: devices over which rows are split; -1 for the rest.
        model: devices over which heads and MLP columns are split.
    """

    data: int = -1
    model: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "model")
        if self.data != -1:
            at_least(self, 1, "data")


@dataclass(frozen=True)
class Level:
    """A part of a curriculum.

    Args:
        share: share of the stage's steps.
        level: level of the rows (for facts: sentences in a context); null: as the data says.
        ratio: source tokens a slot, of a bridge with several ratios; null: any of them.
    """

    share: float
    level: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        between(self, 0, 1, "share")
        at_least(self, 1, "ratio")


@dataclass(frozen=True)
class TrainConfig:
    """A stage that trains the bridge.

    Args:
        steps: optimiser steps.
        batch_size: contexts in a step (all microbatches together).
        accumulate: microbatches per step.
        questions: questions asked of each context in a step.
        curriculum: levels of the rows and ratios of the bridge in order, shares adding up to 1;
            empty: as the data and the bridge say.
        optimiser: the optimiser.
        objectives, data, layout: replace the config's in this stage.
        train_only: regular expressions on parameter paths; empty: all are trained.
        init_from: run directory of another run whose bridge parameters to start from, or the
            directory of an exported bridge.
        init_only: its components to start from, by name as `parameters` in metrics.json has them
            (`compressor`, ...); the others start fresh. Empty: all.
        latent_keep: latent dropout; null for none.
        scheduled_sampling: answers read after some of the receiver's own tokens; null for none.
        text_batches: steps for text among those for the wire; null for none.
        ema: decay of the averaged parameters that are evaluated, less over the first steps, so that
            the start is forgotten; null for none.
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
    data: DataConfig | None = None  # type: ignore[valid-type]
    layout: LayoutConfig | None = None
    train_only: tuple[str, ...] = ()
    init_from: str | None = None
    init_only: tuple[str, ...] = ()
    latent_keep: LatentKeep | None = None
    scheduled_sampling: ScheduledSampling | None = None
    text_batches: TextBatches | None = None
    ema: float | None = None
    log_every: int = 20
    eval_every: int = 200
    save_every: int = 200
    eval_rows: int = 128
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "accumulate", "questions")
        at_least(self, 1, "log_every", "save_every", "eval_rows", "keep")
        at_least(self, 0, "eval_every", "workers")
        between(self, 0, 1, "ema")
        if self.init_only and self.init_from is None:
            raise UserError("init_only: it names components of init_from, which is not given")
        total = sum(c.share for c in self.curriculum)
        if self.curriculum and abs(total - 1) > 1e-6:
            raise UserError(f"curriculum: the shares must add up to 1; they add up to {total:g}")
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

    def __post_init__(self) -> None:
        at_least(self, 1, "rows", "batch_size")


@dataclass(frozen=True)
class StageConfig:
    """One stage: exactly one of the four kinds is set.

    Args:
        pretrain: trains one of the small models that ship.
        calibrate: measures statistics of the frozen models.
        train: trains the bridge.
        evaluate: compares methods on the same held-out rows.
    """

    pretrain: PretrainConfig | None = None
    calibrate: CalibrateConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None

    def __post_init__(self) -> None:
        exactly_one(self)


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        name: names the run directory, `runs/<name>`, unless `run_dir` is given.
        stages: the stages by name, run in this order.
        seed: seed of everything random.
        run_dir: where the run's files go.
        sender: the frozen sender, of bridge.source.sentence_encoder an encoder; null for sources
            that need none.
        receivers: the frozen receivers by name.
        layout: the receiver's sequence.
        data: the rows.
        bridge: the trainable part.
        objectives: what it is trained for; one or several.
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
        for what, names in (("stages", self.stages), ("receivers", self.receivers)):
            for name in names:
                if not re.fullmatch(_NAME, name):
                    raise UserError(f"{what}.{name}: a name has letters, digits, - and _ only")
        for taken in {"sender", "source"} & set(self.receivers):
            raise UserError(f"receivers.{taken}: the name is taken; call the receiver otherwise")
        if not re.fullmatch(_NAME, self.name):
            raise UserError(
                f"name: it names a directory: letters, digits, - and _ only; got {self.name!r}"
            )
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
            exactly_one(self.data, "data")
        if self.bridge is not None:
            check_calibrated(self.bridge, self.stages, self.receivers)
            self._check_ratios(self.bridge)
            self._check_private(self.bridge)
        for name, stage in self.stages.items():
            if stage.train and not chosen(stage.train.objectives or self.objectives):
                raise UserError(f"objectives: none is set, and stages.{name}.train needs one")
            if stage.train:
                self._check_kinds(name, stage.train)
            if stage.evaluate and "relay" in stage.evaluate.methods and self.sender is None:
                raise UserError(f"sender: missing, and stages.{name}.evaluate's relay needs one")
            if stage.evaluate and "relay" in stage.evaluate.methods and self._encodes:
                raise UserError(
                    f"stages.{name}.evaluate.methods: relay needs a sender that writes, and that "
                    "of bridge.source.sentence_encoder reads only; leave relay out"
                )

    @property
    def _encodes(self) -> bool:
        """Whether the sender is a sentence encoder."""
        return self.bridge is not None and "sentence_encoder" in chosen(self.bridge.source)

    def _check_kinds(self, stage: str, train: TrainConfig) -> None:
        """Every kind of batch has an objective, and no objective waits for one that never comes."""
        named = chosen(train.objectives or self.objectives)
        kinds = ("latent",) if train.text_batches is None else ("latent", "text")
        for kind in kinds:
            if not any(c.schedule.on in ("all", kind) for c in named.values()):
                raise UserError(
                    f"stages.{stage}.train: no objective is for its {kind} batches; set one with "
                    f"schedule.on {kind} or all"
                )
        for name, c in named.items():
            if c.schedule.on == "text" and train.text_batches is None:
                raise UserError(
                    f"objectives.{name}.schedule.on: stages.{stage}.train has no text batches; "
                    "set its text_batches, or on to latent or all"
                )

    def _check_private(self, bridge: BridgeConfig) -> None:
        """There are as many slots as the receivers' own take together."""
        asked = bridge.private * len(self.receivers)
        for kind, options in chosen(bridge.compressor).items():
            if asked > getattr(options, "slots", asked):
                raise UserError(
                    f"bridge.private: {bridge.private} slots for each of {len(self.receivers)} "
                    f"receivers are more than the {options.slots} of bridge.compressor.{kind}"
                )

    def _check_ratios(self, bridge: BridgeConfig) -> None:
        """A ratio is asked of none but a bridge that has several."""
        for kind, options in chosen(bridge.compressor).items():
            if getattr(options, "ratios", ()):
                continue
            for name, stage in self.stages.items():
                parts = stage.train.curriculum if stage.train else ()
                asked = {f"train.curriculum.{i}.ratio": c.ratio for i, c in enumerate(parts)}
                if stage.evaluate:
                    asked["evaluate.ratio"] = stage.evaluate.ratio
                for key, ratio in asked.items():
                    if ratio is not None:
                        raise UserError(
                            f"stages.{name}.{key}: bridge.compressor.{kind} has one number of "
                            "slots; give it `ratios` (perceiver), or leave this out"
                        )
