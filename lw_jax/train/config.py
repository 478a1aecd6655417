"""A stage that trains the bridge, as a config describes it."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from lw_jax.data.config import DataConfig
from lw_jax.errors import UserError
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.bounds import (
    FEW,
    BatchSize,
    Checked,
    Decay,
    Location,
    Name,
    Names,
    Pattern,
    Probability,
    Questions,
    Ratio,
    Share,
    Step,
    Steps,
    Tokens,
    Weight,
    Workers,
)
from lw_jax.utils.schedule import BatchKind, Rising

Gigabytes = Annotated[float, Ge(0), Le(10**6)]
"""10^9 bytes."""
RowLevel = Annotated[int, Ge(0), Le(10**6)]
"""Level of rows (for facts: sentences in a context)."""


@dataclass(frozen=True)
class Level(Checked):
    """A part of a curriculum.

    Args:
        share: share of the stage's steps.
        level: level of the rows (for facts: sentences in a context); null: as the data says.
        ratio: source tokens a slot, of a bridge with several ratios; null: any of them.
        mix: how often each of the stage's tasks has a step, in proportion; empty: the stage has no
            tasks.
    """

    share: Share
    level: RowLevel | None = None
    ratio: Ratio | None = None
    mix: Annotated[dict[Name, Weight], FEW] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mix and self.level is not None:
            raise UserError("level: with a mix each task has its own; leave level out")
        if self.mix and not any(self.mix.values()):
            raise UserError("mix: all weights are 0; no task would have a step")


@dataclass(frozen=True)
class Task(Checked):
    """What single steps of a stage are about; where null, as the stage says.

    Args:
        data, layout, objectives: replace the stage's.
        level: level of the rows; null: as the data says.
        batch_size: contexts in a step.
        questions: questions asked of each context in a step.
        together: tokens of all these questions (see the stage's).
    """

    data: DataConfig | None = None
    layout: LayoutConfig | None = None
    objectives: ObjectivesConfig | None = None
    level: RowLevel | None = None
    batch_size: BatchSize | None = None
    questions: Questions | None = None
    together: Tokens | None = None


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A stage that trains the bridge.

    Args:
        steps: optimiser steps.
        batch_size: contexts in a step (all microbatches together).
        accumulate: microbatches per step.
        questions: questions asked of each context in a step.
        together: with several questions, how many tokens all of a context's have with their
            answers, behind one copy of the message: the same as a row for each, for fewer tokens.
            Those that find no room are left out. Null: a row for each.
        apart: training contexts that are contexts of an evaluation of this run, hold one or stand
            in one are left out, and counted (rows read from files alone).
        curriculum: levels of the rows and ratios of the bridge in order, shares adding up to 1;
            empty: as the data and the bridge say.
        tasks: what steps are about, by name, each with rows, layout and batch of its own; every
            part of the curriculum then says in its `mix` how often each has a step. Empty: all
            steps are alike. The quick evaluation is of the stage's own data and layout.
        optimiser: the optimiser.
        objectives, data, layout: replace the config's in this stage.
        train_only: regular expressions for whole names in parameter paths, as in `readers/qwen`;
            empty: all are trained.
        init_from: run directory of another run whose bridge parameters to start from, or the
            directory of an exported bridge.
        init_only: its components to start from, by name as `parameters` in metrics.json has them
            (`compressor`, ...); the others start fresh. Empty: all.
        teacher: run directory, or directory of an exported bridge, of a tuned receiver that reads
            the text (`constant` slots and layout.with_text: prompt tuning, LoRA), from which `kd`
            distils; null: the receiver itself.
        teacher_prompt: the bridge's soft prompts begin as the teacher's soft tokens.
        prompt_from: run directory, or directory of an exported bridge, of another tuned receiver
            that reads the text, as whose soft tokens the bridge's soft prompts begin (the teacher
            may be tuned by LoRA and have none); null: none.
        latent_keep: latent dropout; null for none.
        scheduled_sampling: answers read after some of the receiver's own tokens; null for none.
        text_batches: steps for text among those for the wire; null for none.
        ema: decay of the averaged parameters that are evaluated, less over the first steps, so that
            the start is forgotten; null for none.
        log_every, eval_every, save_every: steps between log lines, quick evaluations (0: never)
            and checkpoints.
        watch_every: steps between looks at first answer tokens and at each objective's gradient, on
            as few rows as take about a twentieth of the time between; 0: only quick evaluations
            look at them.
        eval_rows: rows of the quick evaluation (latent and deranged).
        eval_tokens: tokens that the quick evaluation writes at most; solutions that end in a number
            need as many as they have.
        keep: latest checkpoints to keep, beside the best.
        workers: processes that prepare batches; 0: in process.
        stop_when: ends the stage before its `steps` once a figure of the quick evaluation has
            stopped rising; null: never. Schedules and curriculum stay those of `steps`.
        max_bad_steps: the stage ends after so many steps in a row whose loss, gradients or updated
            parameters are not finite. Each such step changes nothing, and is counted.
        remat: what the backward pass through the receivers computes again rather than keeps:
            `full`, all but the input of each layer; `dots`, all but that and the results of the
            matrix products: faster, for more memory (--doctor says how much); `none`, nothing,
            where the models' layers are apart (`unroll`; with `mesh.fsdp` their weights then stay
            whole from the forward pass on); `auto`, the least that fits into the device's memory.
        buckets: most lengths that batches can have, chosen so that a sample of the contexts is
            padded least; contexts of like length are then put together in a batch, among those of
            32 batches of the shuffled rows. null: every batch is as long as the longest context of
            a sample, and its contexts are of all lengths.
        tensorboard: events are written while it trains, to `<run>/tensorboard/<stage>` (needs
            `lw_jax[tensorboard]`).
        shared_text: the receiver as its own teacher reads a text once for all questions of it, and
            holds its keys and values for each meanwhile; numbers differ by rounding. For
            `questions` above 1; a tuned teacher reads a text once with `together`.
        reuse: keeps what the frozen models say of every row for later epochs; null: they are asked
            anew each time.
    """

    steps: Steps
    batch_size: BatchSize = 32
    accumulate: BatchSize = 1
    questions: Questions = 1
    together: Tokens | None = None
    apart: bool = False
    curriculum: Annotated[tuple[Level, ...], FEW] = ()
    tasks: Annotated[dict[Name, Task], FEW] = field(default_factory=dict)
    optimiser: OptimiserConfig = OptimiserConfig()
    objectives: ObjectivesConfig | None = None
    data: DataConfig | None = None
    layout: LayoutConfig | None = None
    train_only: Annotated[tuple[Pattern, ...], FEW] = ()
    init_from: Location | None = None
    init_only: Names = ()
    teacher: Location | None = None
    teacher_prompt: bool = False
    prompt_from: Location | None = None
    latent_keep: LatentKeep | None = None
    scheduled_sampling: ScheduledSampling | None = None
    text_batches: TextBatches | None = None
    ema: Decay | None = None
    log_every: Steps = 20
    eval_every: Step = 200
    save_every: Steps = 200
    watch_every: Step = 0
    eval_rows: Annotated[int, Ge(1), Le(10**6)] = 128
    eval_tokens: Tokens = 16
    keep: Annotated[int, Ge(1), Le(10_000)] = 2
    workers: Workers = 0
    stop_when: StopWhen | None = None
    max_bad_steps: Annotated[int, Ge(1), Le(10**6)] = 5
    remat: Literal["full", "dots", "none", "auto"] = "full"
    buckets: Annotated[int, Ge(2), Le(8)] | None = None
    tensorboard: bool = False
    shared_text: bool = False
    reuse: Reuse | None = None

    def __post_init__(self) -> None:
        for i, pattern in enumerate(self.train_only):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"train_only.{i}: {pattern!r} is no regular expression: {error}"
                ) from None
        if self.eval_every and self.eval_rows < 2:
            raise UserError("eval_rows: the quick evaluation needs 2 or more; or set eval_every 0")
        if self.stop_when is not None and not self.eval_every:
            raise UserError("stop_when: it looks at the quick evaluation; set eval_every above 0")
        if self.stop_when is not None and (self.stop_when.after or 0) >= self.steps:
            raise UserError(
                f"stop_when.after: {self.stop_when.after} of {self.steps} steps leave none to "
                "judge by; lower it, or leave stop_when out"
            )
        if self.init_only and self.init_from is None:
            raise UserError("init_only: it names components of init_from, which is not given")
        if self.teacher_prompt and self.teacher is None:
            raise UserError("teacher_prompt: there is no teacher; set teacher, or leave it out")
        if self.teacher_prompt and self.prompt_from is not None:
            raise UserError(
                "prompt_from: teacher_prompt says where the soft prompts begin; set one of them"
            )
        total = sum(c.share for c in self.curriculum)
        if self.curriculum and abs(total - 1) > 1e-6:
            raise UserError(f"curriculum: the shares must add up to 1; they add up to {total:g}")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}"
            )
        self._check_tasks()

    def _check_tasks(self) -> None:
        """Raises UserError unless every part of the curriculum mixes tasks that there are."""
        used = {
            name
            for part in self.curriculum
            if part.share
            for name, often in part.mix.items()
            if often
        }
        for i, part in enumerate(self.curriculum):
            for name in part.mix:
                if name not in self.tasks:
                    known = ", ".join(self.tasks) or "none"
                    raise UserError(f"curriculum.{i}.mix: no task {name!r}; there are: {known}")
            if self.tasks and not part.mix:
                raise UserError(f"curriculum.{i}.mix: missing; there are tasks to share the steps")
        for name, task in self.tasks.items():
            if name not in used:
                raise UserError(
                    f"tasks.{name}: in no mix of the curriculum, or of weight or share 0 there; it "
                    "has no step"
                )
            if (task.batch_size or self.batch_size) % self.accumulate:
                raise UserError(
                    f"tasks.{name}.batch_size: accumulate {self.accumulate} does not divide "
                    f"{task.batch_size}"
                )

    def of(self, task: str | None) -> TrainConfig:
        """The stage as the steps of one task see it, without tasks; of None: itself."""
        if task is None:
            return self
        own = self.tasks[task]
        given = {
            name: value
            for name in ("data", "layout", "objectives", "batch_size", "questions", "together")
            if (value := getattr(own, name)) is not None
        }
        parts = tuple(replace(part, level=own.level, mix={}) for part in self.curriculum)
        return replace(self, tasks={}, curriculum=parts, **given)

    def each(self) -> dict[str | None, TrainConfig]:
        """The stage as the steps of every task see it; by None where it has no tasks."""
        return {task: self.of(task) for task in self.tasks or (None,)}


@dataclass(frozen=True)
class Reuse(Checked):
    """What the frozen models say of a row is kept, in host memory and in files.

    Numbers are those of the batch in which a row came first, so a step differs from one without
    this by rounding. Rows beyond the room are asked anew each time.

    Args:
        sender: whether the source's states of every text are kept.
        teacher: whether the receivers' states at the answers, read from the text, are kept for
            objectives that compare with them, those of a tuned teacher (`train.teacher`) likewise.
        memory_gb: 10^9 bytes in host memory; 0: none.
        disk_gb: 10^9 bytes in files; 0: none, so a resumed run asks again, and differs by rounding.
        folder: of the files, which runs of the same models may share; null: the run's directory.
    """

    sender: bool = True
    teacher: bool = True
    memory_gb: Gigabytes = 4.0
    disk_gb: Gigabytes = 64.0
    folder: Location | None = None

    def __post_init__(self) -> None:
        if not (self.sender or self.teacher):
            raise UserError("sender: with teacher false as well nothing is kept; leave reuse out")
        if not (self.memory_gb or self.disk_gb):
            raise UserError("memory_gb: with disk_gb 0 as well there is no room; leave reuse out")


@dataclass(frozen=True)
class LatentKeep(Rising):
    """Latent dropout: in training every slot is kept with a probability that rises, else zeroed.

    The earlier systems' ramp goes from 0.5 to 0.85 and stays there: ramps to 1 regressed
    (docs/design.md section 6).

    Args:
        start: probability at the first step.
        end: probability after the ramp, to the end of the stage.
        ramp: steps of the linear rise; 0: `end` at once.
    """

    start: Probability = 0.5
    end: Probability = 0.85

    def __post_init__(self) -> None:
        if self.end == 0 and (self.start == 0 or self.ramp == 0):
            raise UserError("end: at 0 every slot is dropped in every step; nothing is trained")


@dataclass(frozen=True)
class ScheduledSampling(Rising):
    """Scheduled sampling: training's answers are read after some of the receiver's own tokens.

    With a probability that rises, a gold answer token is given to the receiver as the one that it
    finds most probable in that place (Bengio et al. 2015, in two passes as Mihaylova and Martins
    2019); labels stay gold, and so does what a teacher reads.

    Args:
        start: probability at the first step.
        end: probability after the ramp, to the end of the stage.
        ramp: steps of the linear rise; 0: `end` at once.
    """

    start: Probability = 0.0
    end: Probability = 0.25


@dataclass(frozen=True)
class StopWhen(Checked):
    """When a stage has been trained for long enough: a figure of its quick evaluation rose less
    than `rise` in the last `share` of its steps; or when it has failed: the figure is below
    `least`.

    Compared are the best figure of all evaluations so far, and the best of those before that share;
    evaluations after `after` steps count. `eval_rows` decides how much of a rise is chance: with n
    rows the standard error of a share is at most 0.5 / sqrt(n).

    Args:
        metric: the figure, its mean over the receivers: F1 of what is written, accuracy (all gold
            tokens are the argmax), or nats a token of the gold answer, of which a fall is a rise.
        rise: least rise that is worth going on for; 0: `least` alone ends it.
        least: what the figure has to be at every evaluation that counts (nats: at most), or the
            stage ends there; null: whatever it is.
        share: share of the steps done in which it has to rise so much.
        after: steps before which nothing is judged; null: those before the curriculum's last level.
    """

    metric: Literal["f1", "accuracy", "nll"] = "f1"
    rise: Annotated[float, Ge(0), Le(1000)] = 0.005
    share: Annotated[float, Gt(0), Lt(1)] = 0.25
    after: Step | None = None
    least: Annotated[float, Ge(0), Le(1000)] | None = None

    def value(self, metrics: Mapping[str, Any]) -> float:
        """The figure of a quick evaluation, larger is better."""
        found = [value for key, value in metrics.items() if key.endswith(f"/{self.metric}")]
        return float(np.mean(found)) * (-1 if self.metric == "nll" else 1)

    def ended(self, history: Sequence[tuple[int, float]]) -> dict[str, float] | None:
        """Why a stage ends after its last evaluation; None: it goes on.

        Args:
            history: steps and `value` of all evaluations that count, in order.

        Returns:
            `best` of all, the `best_before` the last share, and `since`, the step where that began;
            or `now`, the figure, where that is too little.
        """
        step, now = history[-1]
        sign = -1 if self.metric == "nll" else 1
        if self.least is not None and now < sign * self.least:
            return {"now": sign * now}
        since = step * (1 - self.share)
        before = [value for at, value in history if at <= since]
        if not before:
            return None
        best, best_before = max(value for _, value in history), max(before)
        if best - best_before >= self.rise:
            return None
        return {"best": best, "best_before": best_before, "since": math.floor(since)}


@dataclass(frozen=True)
class TextBatches(Checked):
    """Steps whose objectives are those for text (`schedule.on`), among those for the wire.

    The earlier systems warm up on batches of both kinds in turn, and go on with a few text batches
    (docs/design.md section 6). Which steps they are depends on the seed, the stage and the step
    alone.

    Args:
        steps: of the warm-up: every other one, from the first on, is for text.
        pure: steps before the warm-up, all of them for text.
        tail: probability of a later step to be for text.
    """

    steps: Step
    tail: Probability = 0.0
    pure: Step = 0

    @property
    def known(self) -> int:
        """Steps of which it is known what they are for, whatever the seed."""
        return self.pure + self.steps

    def kind(self, seed: int, stage: str, step: int) -> BatchKind:
        """What a step (0-based) is for."""
        if step < self.known:
            alternates = step >= self.pure
            return "latent" if alternates and (step - self.pure) % 2 else "text"
        drawn = np.random.default_rng([seed, zlib.crc32(stage.encode()), step]).random()
        return "text" if drawn < self.tail else "latent"
