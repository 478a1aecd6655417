"""The typed form of a config file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from lw_jax.bridge.config import BridgeConfig, closed_form, fitted_reader, normaliser, pca
from lw_jax.data.config import DataConfig
from lw_jax.errors import UserError
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.metrics.squad import normalise
from lw_jax.mesh import MeshConfig
from lw_jax.models.config import ModelConfig
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.pretrain.config import PretrainConfig
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.config import TrainConfig
from lw_jax.utils.bounds import FEW, BatchSize, Checked, Location, Name, Rows, Seed
from lw_jax.utils.checks import exactly_one
from lw_jax.utils.hosts import HostsConfig
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import Schedule

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"


@dataclass(frozen=True)
class CalibrateConfig(Checked):
    """A stage that measures statistics of the frozen models, and fits a bridge's parts to them
    (docs/design.md section 4).

    Args:
        rows: training rows read.
        batch_size: rows in a step.
    """

    rows: Rows = 500
    batch_size: BatchSize = 32


@dataclass(frozen=True)
class StageConfig(Checked):
    """One stage: exactly one of the four kinds is set.

    Args:
        pretrain: trains one of the small models that ship.
        calibrate: measures statistics of the frozen models, and fits parts of a bridge to them.
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
class Config(Checked):
    """A run.

    Args:
        name: names the run directory, `runs/<name>`, unless `run_dir` is given.
        stages: the stages by name, run in this order.
        seed: seed of all random numbers.
        run_dir: directory of the run's files.
        sender: the frozen sender, an encoder for bridge.source.sentence_encoder; null for sources
            that need none.
        receivers: the frozen receivers by name.
        layout: the receiver's sequence.
        data: the rows.
        bridge: the trainable part.
        objectives: what the bridge is trained for; one or several.
        mesh: the device mesh.
        hosts: several processes that run the config together.
        device: `auto`: what jax finds, and where there is an NVIDIA GPU that jax cannot use, an
            error; `cpu`: the CPU, whatever else there is.
        deterministic: on a GPU, programs without sums in no fixed order, and none chosen by timing:
            a run that was killed and goes on has the very bits of one that was not. It is slower,
            and jax 0.11.2 cannot compile every program so (docs/performance.md).
        fingerprint: which frozen models an exported bridge is taken between: `exact`, the very
            files that it was trained with, stored alike; `same_model`, also the same models stored
            otherwise (GGUF, other bits, another dtype), with a warning.
        plugins: Python files that define parts of your own: a variant, named like its file.
    """

    name: Name
    stages: Annotated[dict[Name, StageConfig], FEW]
    seed: Seed = 42
    run_dir: Location | None = None
    sender: ModelConfig | None = None
    receivers: Annotated[dict[Name, ModelConfig], FEW] = field(default_factory=dict)
    layout: LayoutConfig = LayoutConfig()
    data: DataConfig | None = None
    bridge: BridgeConfig | None = None
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    device: Literal["auto", "cpu"] = "auto"
    deterministic: bool = False
    fingerprint: Literal["exact", "same_model"] = "exact"
    plugins: Annotated[tuple[Location, ...], FEW] = ()

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
        if self.bridge is not None:
            self.bridge.check_read(self.receivers)
            check_calibrated(self.bridge, self.stages, self.receivers)
            self._check_ratios(self.bridge)
            self._check_private(self.bridge)
            self._check_budgets()
            for name, stage in self.stages.items():
                if stage.evaluate is not None and stage.evaluate.view is not None:
                    _check_view(self.bridge, stage.evaluate.view, f"stages.{name}.evaluate")
        self._check_sender_mesh()
        for name, stage in self.stages.items():
            for train in stage.train.each().values() if stage.train else ():
                if not chosen(train.objectives or self.objectives):
                    raise UserError(f"objectives: none is set, and stages.{name}.train needs one")
                self._check_kinds(name, train)
                self._check_trains(name, train)
                self._check_reuse(name, train)
            if stage.pretrain and not stage.pretrain.optimiser.schedule.ever(stage.pretrain.steps):
                raise UserError(_never(f"stages.{name}.pretrain", stage.pretrain.steps))
            if stage.evaluate:
                self._check_evaluates(name, stage.evaluate)

    def of_stage(self, train: TrainConfig) -> Config:
        """The config as a train stage of its own rows or layout sees it; evaluations keep theirs.

        Args:
            train: the stage.
        """
        data, stages = train.data or self.data, self.stages
        if train.data is not None:
            stages = {
                name: replace(stage, evaluate=replace(own, data=own.data or self.data))
                if (own := stage.evaluate)
                else stage
                for name, stage in stages.items()
            }
        return replace(self, data=data, layout=train.layout or self.layout, stages=stages)

    def _check_evaluates(self, stage: str, evaluate: EvaluateConfig) -> None:
        """Checks that sender and rows are such that the methods can run."""
        for needs in evaluate.of_whole_sender:
            self._check_writes(f"stages.{stage}.evaluate", needs, "methods")
        for kind, data in chosen(evaluate.data or self.data).items():
            same = _alike(data.choices)
            if same is not None:
                raise UserError(
                    f"data.{kind}.labels: {same[0]!r} and {same[1]!r} are one answer to the exact "
                    f"match of stages.{stage}.evaluate, which leaves out case, punctuation, a, an "
                    "and the; give other words"
                )
            if evaluate.of_articles and not data.has_articles:
                which = "name data.jsonl.article_field, or " if kind == "jsonl" else ""
                raise UserError(
                    f"stages.{stage}.evaluate.methods: {evaluate.of_articles[0]} needs rows of "
                    f"known articles, and data.{kind} has none; {which}leave it out"
                )

    def _check_writes(self, stage: str, needs: str, key: str) -> None:
        """Checks that there is a sender with a head, for what a stage's key says needs one."""
        if self.sender is None:
            raise UserError(f"sender: missing, and {stage}'s {needs} needs one")
        for view, source in self.bridge.views.items() if self.bridge else ():
            if source.reads_sender and not source.sender_writes:
                raise UserError(
                    f"{stage}.{key}: {needs} needs a sender that writes, and that of bridge.{view} "
                    f"reads only; leave {needs} out"
                )

    def _check_budgets(self) -> None:
        """Checks that what `text_budget` chooses by is there: a sender, and one question."""
        for name, stage in self.stages.items():
            own = stage.train or stage.evaluate
            layout = self.layout if own is None or own.layout is None else own.layout
            budget = layout.text_budget
            if own is None or budget is None:
                continue
            if budget.keep == "surprisal":
                where = f"stages.{name}.{'train' if stage.train else 'evaluate'}"
                self._check_writes(where, "text_budget.keep surprisal", "layout")
            if budget.keep == "sentences" and stage.train and stage.train.questions > 1:
                raise UserError(
                    f"stages.{name}.train.questions: {stage.train.questions} on each context, and "
                    "text_budget.keep sentences chooses them by one question; set it to 1"
                )

    def _check_kinds(self, stage: str, train: TrainConfig) -> None:
        """Checks that every kind of batch has an objective, and every objective a batch."""
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

    def _check_trains(self, stage: str, train: TrainConfig) -> None:
        """Checks that some objective has a weight, and the rate a factor, in some step."""
        where = f"stages.{stage}.train"
        named = chosen(train.objectives or self.objectives)
        key = f"{where}.objectives" if train.objectives else "objectives"
        if not train.optimiser.schedule.ever(train.steps):
            raise UserError(_never(where, train.steps))
        weighed = {n: c for n, c in named.items() if c.weight > _NOTHING and c.has_gradient}
        if not weighed:
            raise UserError(
                f"{key}: {_all_of(named)} of weight 0 or without a gradient, so {where} would "
                "train nothing"
            )
        if not any(self._on(c.schedule, train) for c in weighed.values()):
            raise UserError(
                f"{key}: {_all_of(weighed)} off in all {train.steps} steps of {where} (schedule), "
                "so it would train nothing"
            )

    def _check_sender_mesh(self) -> None:
        """Checks that a sender that has devices of its own can work there by itself."""
        if self.mesh.sender is None:
            return
        views = {} if self.bridge is None else self.bridge.views
        if self.sender is None or not any(
            one.reads_sender and one.reads_receiver is None for one in views.values()
        ):
            raise UserError("mesh.sender: no source reads a sender; leave it out")
        if self.bridge is not None and (view := self.bridge.edits_sender) is not None:
            raise UserError(
                f"mesh.sender: bridge.{view} trains a LoRA of the sender, whose gradients need it "
                "where the bridge is; leave mesh.sender out, or the LoRA"
            )

    def _check_reuse(self, stage: str, train: TrainConfig) -> None:
        """Checks that what a stage keeps for later epochs does not change."""
        if train.reuse is None or not train.reuse.sender or self.bridge is None:
            return
        if (view := self.bridge.edits_sender) is not None:
            raise UserError(
                f"stages.{stage}.train.reuse.sender: bridge.{view} trains a LoRA of the "
                "sender, so what that says changes in every step; set it to false"
            )
        views = self.bridge.views.values()
        if not any(one.reads_sender or one.reads_receiver for one in views):
            raise UserError(
                f"stages.{stage}.train.reuse.sender: the source reads no model; set it to false"
            )

    def _on(self, schedule: Schedule, train: TrainConfig) -> bool:
        """Whether an objective's factor can be non-zero in some step of a stage."""
        other = train.text_batches
        last = train.steps if schedule.stop is None else min(train.steps, schedule.stop)
        steps = range(schedule.start, last)
        if other is None or schedule.on == "all":
            return bool(steps)
        known = range(schedule.start, min(last, other.known))
        # of the last steps that are known, two that follow each other are one of either kind
        if any(other.kind(self.seed, "", s) == schedule.on for s in (*known[:1], *known[-2:])):
            return True
        later = last > max(other.known, schedule.start)
        return later and (other.tail > 0 if schedule.on == "text" else other.tail < 1)

    def _check_private(self, bridge: BridgeConfig) -> None:
        """Checks that there are enough slots for the private ones of all receivers."""
        asked = bridge.private * len(self.receivers)
        for kind, options in chosen(bridge.compressor).items():
            if bridge.private and asked > (options.fixed_slots or 0):
                raise UserError(
                    f"bridge.private: {bridge.private} slots for each of {len(self.receivers)} "
                    f"receivers are more than the {options.fixed_slots} of "
                    f"bridge.compressor.{kind}"
                )

    def _check_ratios(self, bridge: BridgeConfig) -> None:
        """Checks that a ratio is set only for a bridge that has several."""
        for kind, options in chosen(bridge.compressor).items():
            if options.several_ratios:
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
                            "slots; give it `ratios`, if it can have some, or leave this out"
                        )


def _check_view(bridge: BridgeConfig, view: str, where: str) -> None:
    """Raises UserError if the bridge makes no latents from that view alone."""
    try:
        bridge.at_view(view)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _alike(words: Sequence[str]) -> tuple[str, str] | None:
    """The first two words that are the same answer to `em`; None: all differ."""
    known: dict[str, str] = {}
    for word in words:
        first = known.setdefault(normalise(word), word)
        if first != word:
            return first, word
    return None


_NOTHING = 1e-30
"""A weight up to which an objective's gradient is lost in float32."""


def _never(where: str, steps: int) -> str:
    return (
        f"{where}.optimiser.schedule.start: the learning rate is 0 in all {steps} steps, so "
        "nothing would be trained"
    )


def _all_of(names: Iterable[str]) -> str:
    found = list(names)
    return f"{found[0]} is" if len(found) == 1 else f"{', '.join(found)} are all"


def calibrate_before(stages: Mapping[str, StageConfig], name: str | None = None) -> str | None:
    """The nearest `calibrate` stage before a stage; without a name the last of all."""
    names = list(stages)
    count = len(names) if name is None else names.index(name)
    earlier = [n for n in names[:count] if stages[n].calibrate is not None]
    return earlier[-1] if earlier else None


def check_calibrated(
    bridge: BridgeConfig, stages: Mapping[str, StageConfig], receivers: Mapping[str, object]
) -> None:
    """Checks that statistics which the bridge needs are there when it starts from nothing.

    Raises:
        UserError: no `calibrate` stage before the first train stage, or an unknown target.
    """
    coloured, fitted = normaliser(bridge), closed_form(bridge)
    targets: dict[str, str | None] = {}
    if coloured is not None:
        targets[f"{coloured[0]}.target"] = coloured[1].target
    if fitted is not None:
        targets[f"{fitted[0]}.receiver"] = fitted[1].receiver
    for key, target in targets.items():
        if target is not None and target not in receivers:
            raise UserError(f"{key}: {target!r} is no receiver; there are {', '.join(receivers)}")
    read = fitted_reader(bridge)
    if read is not None:
        _check_measured(f"bridge.reader.{read[0]}", "readers", stages)
    needed = {"source": coloured or pca(bridge), "compressor": fitted}
    for part, options in needed.items():
        if options is not None:
            _check_measured(options[0], part, stages)


def _check_measured(key: str, part: str, stages: Mapping[str, StageConfig]) -> None:
    """Checks that statistics which a part of the bridge needs are there at its start.

    Raises:
        UserError: no `calibrate` stage is before the first train stage, which does not take the
            part from another bridge.
    """
    for name, stage in stages.items():
        if stage.train is None:
            continue
        taken = stage.train.init_only or (part,)
        brought = stage.train.init_from is not None and part in taken
        if not brought and calibrate_before(stages, name) is None:
            raise UserError(
                f"{key}: stages.{name} starts without statistics; put a stage with "
                "`calibrate: {}` before it, or init_from a bridge that has them"
            )
        return  # later stages go on from this one
