"""The loop of a stage: steps, log lines, evaluations, checkpoints; resumed where it was stopped.

Kill it at any moment and call `fit` with the same job: the final parameters are bit-identical to
an uninterrupted run, because a step depends on the state and on `batches(step, ...)` alone.

A step that is not finite changes nothing but the count of them (`lw_jax.train.state.keep_finite`);
after several in a row the stage ends, and says why. So what a checkpoint holds is always finite.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.errors import UserError
from lw_jax.train.board import board
from lw_jax.train.checkpoint import Checkpoints, read_meta, steps
from lw_jax.train.config import StopWhen
from lw_jax.train.diagnostics import (
    DivergedError,
    Journal,
    Window,
    is_sound,
    wrong_metric,
)
from lw_jax.train.optimiser import FIXED, path_of
from lw_jax.train.progress import Display
from lw_jax.train.state import SOUND, UPDATE_SOUND, TrainState
from lw_jax.types import Array, PyTree
from lw_jax.utils import hosts
from lw_jax.utils.device import peak_memory
from lw_jax.utils.files import DamagedFileError
from lw_jax.utils.signals import Stop, termination

SMOOTHING = 0.7
"""Decay of the averaged score that decides which checkpoint is the best: one lucky batch is not."""

TOO_LARGE = 1e4
"""A parameter beyond this is taken for one that blew up; they begin at about 1."""

Metrics = Mapping[str, Any]
StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Evaluation:
    """A quick evaluation.

    Attributes:
        metrics: its figures.
        score: higher is better; None: it has none.
        samples: lines for people.
    """

    metrics: Metrics
    score: float | None = None
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A stage to fit.

    Args:
        name: the stage's.
        directory: the run's; checkpoints go to `checkpoints/<name>`, lines to `diagnostics.jsonl`.
        steps: optimiser steps.
        state: the state before the first step, on the devices.
        step_for: the compiled step of a step number (0-based); it may donate the state. Its metrics
            are scalars or small arrays, `loss`, `grad_norm` and what `keep_finite` adds among them.
        batches: `batches(start, stop)` gives the batches of those steps.
        identity: what a resumed run must share (see `Checkpoints`).
        log_every, save_every, eval_every: steps; `eval_every` 0 for never.
        keep: latest checkpoints kept.
        max_bad_steps: the stage ends after so many steps in a row that are not finite.
        stop_when: ends the stage early, by what the quick evaluations say; None: never.
        judged_after: steps before which it judges nothing.
        prepare: `prepare(state, start)`, before the first step of this leg (0-based `start`).
        evaluate: quick evaluation after some steps.
        tensorboard: whether events are written as well.
        watch_every: steps between looks; 0 for never.
        watch: what a look sees, and its `seconds` without what it waits for (compilation).
        before_saving: called before a checkpoint is written.
        look_at_models: what is not finite in the frozen models' part of a batch, in words; None:
            nothing. Asked when the stage ends for its bad steps.
        by_cudnn: the receivers, through which gradients go, whose attention is cudnn's.
    """

    name: str
    directory: Path
    steps: int
    state: TrainState
    step_for: Callable[[int], StepFn]
    batches: Callable[[int, int], Iterator[Any]]
    identity: Mapping[str, Any] = field(default_factory=dict)
    log_every: int = 20
    save_every: int = 200
    eval_every: int = 0
    keep: int = 2
    max_bad_steps: int = 5
    stop_when: StopWhen | None = None
    judged_after: int = 0
    prepare: Callable[[TrainState, int], None] | None = None
    evaluate: Callable[[TrainState, int], Evaluation] | None = None
    watch_every: int = 0
    watch: Callable[[TrainState, int], Metrics] | None = None
    before_saving: Callable[[], None] | None = None
    look_at_models: Callable[[Any], str | None] | None = None
    by_cudnn: tuple[str, ...] = ()
    tensorboard: bool = False

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(checkpoint_root(self.directory, self.name), self.keep, self.identity)


def checkpoint_root(run: Path, stage: str) -> Path:
    """Where a stage's checkpoints are."""
    return run / "checkpoints" / stage


def end_of(run: Path, stage: str, steps_asked: int) -> int:
    """The step with which a stage ends: the last that was asked for, or where `stop_when` ended it,
    as its newest checkpoint says."""
    root = checkpoint_root(run, stage)
    held = steps(root)
    with suppress(DamagedFileError):
        if held and "ended" in read_meta(root / str(held[0]))["progress"]:
            return held[0]
    return steps_asked


def bad_steps(run: Path, stage: str) -> int:
    """Steps of a stage that were not finite, as its newest checkpoint counts them."""
    root = checkpoint_root(run, stage)
    newest = steps(root)[0]
    return int(read_meta(root / str(newest))["progress"].get("bad_steps", 0))


@dataclass
class _Progress:
    """What the host remembers between steps; JSON in every checkpoint.

    Attributes:
        window: sums since the last log line.
        smoothed: average of the scores so far.
        best: step and score of the best checkpoint.
        bad_steps: steps so far that were not finite.
        bad_in_a_row: the last of them, without a finite one between.
        history: steps and figures of the evaluations that `stop_when` judges by.
        ended: why it ended the stage; None: it did not.
    """

    window: Window
    smoothed: float | None = None
    best: dict[str, float] | None = None
    bad_steps: int = 0
    bad_in_a_row: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    ended: dict[str, Any] | None = None

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> _Progress:
        """What a checkpoint holds; those of earlier versions counted no bad steps."""
        return cls(
            Window(saved["window"]),
            saved["smoothed"],
            saved["best"],
            bad_steps=saved.get("bad_steps", 0),
            bad_in_a_row=saved.get("bad_in_a_row", 0),
            history=[(int(step), float(value)) for step, value in saved.get("history", [])],
            ended=saved.get("ended"),
        )

    def take(self, metrics: Mapping[str, Any]) -> None:
        """Take a step in: those that are not finite are counted, and enter no mean."""
        if is_sound(metrics):
            self.bad_in_a_row = 0
            own = (SOUND, UPDATE_SOUND)
            self.window.add({k: v for k, v in metrics.items() if k not in own})
        else:
            self.bad_steps += 1
            self.bad_in_a_row += 1

    def score(self, value: float, step: int) -> bool:
        """Take a score in; whether this step is the best so far."""
        if not np.isfinite(value):
            return False
        old = self.smoothed
        self.smoothed = value if old is None else SMOOTHING * old + (1 - SMOOTHING) * value
        top = self.best["score"] if self.best else float("-inf")
        # the raw score triggers, the smoothed one decides
        if value > top and self.smoothed > top:
            self.best = {"step": step, "score": self.smoothed}
            return True
        return False

    def to_json(self) -> dict[str, Any]:
        return {
            "window": self.window.sums,
            "smoothed": self.smoothed,
            "best": self.best,
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.bad_in_a_row,
            **({"history": self.history} if self.history else {}),
            **({} if self.ended is None else {"ended": self.ended}),
        }

    def judge(self, rule: StopWhen, metrics: Mapping[str, Any], step: int) -> None:
        """Take an evaluation in, after which the stage may have to end."""
        value = rule.value(metrics)
        if np.isfinite(value):
            self.history.append((step, value))
            self.ended = rule.ended(self.history)


@dataclass(frozen=True)
class _Pending:
    """A step whose metrics are still on the device.

    Attributes:
        step: its number.
        batch: its batch.
        metrics: its metrics.
    """

    step: int
    batch: Any
    metrics: Metrics


def fit(job: Job) -> TrainState:
    """Take the job's steps, from its newest checkpoint if there is one.

    Raises:
        DivergedError: too many steps in a row were not finite.
        UserError: the checkpoints are of another run, or all damaged.
        SystemExit: code 143 after SIGTERM and 130 after Ctrl-C, with the state saved.
    """
    store, journal = job.checkpoints, Journal(job.directory / "diagnostics.jsonl", job.name)
    state, start, progress = job.state, 0, _Progress(Window())
    if found := store.restore(job.state):
        state, start, progress = found.state, found.step, _Progress.of(found.progress)
    beyond = journal.rewind(start)
    if start > job.steps:
        raise UserError(
            f"stages.{job.name}: it was trained for {start} steps already, {job.steps} are asked "
            "for; steps may be raised, not lowered: give another run_dir"
        )
    if start == job.steps or progress.ended is not None:
        if hosts.first():
            store.remove_old(progress.to_json())
        return state
    pending: _Pending | None = None
    saved_at = done = start

    def settle() -> None:
        """Fetch the metrics of the step before, which the device has had time to finish."""
        nonlocal pending
        if pending is None:
            return
        step, metrics = pending.step, jax.device_get(pending.metrics)
        progress.take(metrics)
        if not is_sound(metrics):
            last, bad = step == job.steps, progress.bad_in_a_row
            end = bad >= job.max_bad_steps
            cause, is_rows = "", False
            if end or last:
                cause, is_rows = _cause(job, state, pending.batch, metrics)
            if end or (last and not (is_rows and progress.bad_steps < step)):
                raise _diverged(job, store, step, bad, metrics, cause)
            if bad == 1:
                what = wrong_metric(metrics) or "the updated parameters are not finite"
                display.say(f"step {step}: {what}; the step is left out, and counted (bad_steps)")
        pending = None

    def save_now() -> None:
        if job.before_saving is not None:
            job.before_saving()
        store.save(state, done, progress.to_json())

    with ExitStack() as stack:
        stop = stack.enter_context(termination())
        wanted = job.tensorboard and hosts.first()
        events = stack.enter_context(board(wanted, job.directory, job.name, start))
        # before the programs are compiled: processes that make batches start meanwhile
        batches = stack.enter_context(closing(_until(stop, job.batches(start, job.steps))))
        if job.prepare is not None:
            job.prepare(state, start)
        display = stack.enter_context(Display(job.name, start, job.steps))
        if stop() and hosts.count() == 1:
            display.say(f"stopped before step {start + 1}: run the same command again to go on")
            stop.leave()
        hosts.meet(f"the first step of {job.name}")
        if start:
            display.say(f"resumed after step {start} of {job.steps}")
        elif beyond:
            display.say("starts at step 0: it had begun before, and left no checkpoint")
        done, since, at, per_step = start, time.monotonic(), start, 0.0
        agreed, leaving = hosts.Agreed(job.name), False
        for done, batch in enumerate(batches, start + 1):
            state, metrics = job.step_for(done - 1)(state, batch)
            settle()
            pending = _Pending(done, batch, metrics)
            display.step(done)
            last, save = done == job.steps, done % job.save_every == 0
            if done % job.log_every == 0 or last:
                settle()
                per_step = (time.monotonic() - since) / (done - at)
                since, at = time.monotonic(), done
                means = progress.window.close() | {"bad_steps": progress.bad_steps}
                means.setdefault("loss", None)  # an interval without a finite step has none
                means |= {"seconds_per_step": per_step}
                peak = peak_memory()
                journal.write(done, "train", means | ({"peak_gib": peak} if peak else {}))
                if events is not None:
                    events.figures(done, "train", means)
                display.train(done, means, per_step)
            if job.watch and job.watch_every and done % job.watch_every == 0:
                settle()
                began = time.monotonic()
                seen = dict(job.watch(state, done))
                since += time.monotonic() - began
                if per_step:  # of the last interval
                    seen["share_of_time"] = seen["seconds"] / (job.watch_every * per_step)
                journal.write(done, "watch", seen)
            if job.evaluate and job.eval_every and (done % job.eval_every == 0 or last):
                settle()
                began = time.monotonic()
                result = job.evaluate(state, done)
                if result.score is not None:
                    save = progress.score(result.score, done) or save
                took = {"seconds": time.monotonic() - began}
                journal.write(done, "evaluate", dict(result.metrics) | took)
                if events is not None:
                    events.figures(done, "evaluate", dict(result.metrics) | took)
                    events.text("samples", result.samples, done)
                for line in result.samples:
                    display.say(line)
                since += took["seconds"]
                if job.stop_when is not None and job.judged_after < done < job.steps:
                    progress.judge(job.stop_when, result.metrics, done)
            if job.stop_when is not None and progress.ended is not None:
                journal.write(done, "stop", asdict(job.stop_when) | progress.ended)
                display.say(_ended(job, done, progress.ended))
            if save or last or progress.ended is not None:
                settle()
                save_now()
                saved_at = done
            leaving = agreed(stop(), done)
            if leaving or progress.ended is not None:
                break
        if done < job.steps and progress.ended is None:
            if not leaving and not stop():
                raise RuntimeError(f"{job.name}: the batches ended after step {done}")
            settle()
            if saved_at < done:
                save_now()
            display.say(f"stopped after step {done}: run the same command again to go on")
            stop.leave()
    return state


def _ended(job: Job, step: int, why: Mapping[str, Any]) -> str:
    """Why `stop_when` ends a stage, in words."""
    rule = job.stop_when
    assert rule is not None
    if "now" in why:
        short = f"{'more' if rule.metric == 'nll' else 'less'} than {rule.least:g}"
        said = f"{rule.metric} is {why['now']:.4g}, {short}: it has failed"
        return f"ended after step {step} of {job.steps} (stop_when): {said}"
    sign = -1 if rule.metric == "nll" else 1
    now, before = sign * why["best"], sign * why["best_before"]
    return (
        f"ended after step {step} of {job.steps} (stop_when): best {rule.metric} {now:.4g}, "
        f"{before:.4g} up to step {why['since']}: less than {rule.rise:g} better in "
        f"{rule.share:.0%} of the steps"
    )


def _cause(job: Job, state: TrainState, batch: Any, metrics: Metrics) -> tuple[str, bool]:
    """Why a step was not finite, in words, and whether its rows are to blame.

    Args:
        job: the stage.
        state: the state, which the step has not changed.
        batch: the step's.
        metrics: the step's.
    """
    size = largest(state.params)
    if not size < float("inf"):
        return (
            "the parameters were not finite before it: the bridge that the stage starts from is "
            "not sound; start from another",
            False,
        )
    said = job.look_at_models(batch) if job.look_at_models is not None else None
    if said is not None:
        return f"the frozen models give no finite numbers: {said}", False
    sound_loss = wrong_metric(metrics) is None
    if sound_loss or size > TOO_LARGE:
        what = "its update is not finite" if sound_loss else f"a parameter has grown to {size:.2g}"
        return (
            f"the parameters blew up ({what}): lower optimiser.lr or optimiser.clip",
            False,
        )
    if np.isfinite(metrics.get("loss", np.nan)):
        first = f"try {_without_cudnn(job.by_cudnn)}, then " if job.by_cudnn else ""
        return (
            f"its loss, models and parameters are finite (none beyond {size:.2g}), so it is the "
            f"backward pass: {first}look at the rows of its batch, or lower the objectives' "
            "weights",
            True,
        )
    return (
        f"models and parameters are finite (none beyond {size:.2g}), so its rows are to blame, all "
        "rows of its batch: look at the data, or lower the objectives' weights",
        True,
    )


def _without_cudnn(receivers: Sequence[str]) -> str:
    flags = " ".join(f"--receivers.{name}.attention=xla" for name in receivers)
    return f"{flags} (their attention is cudnn's)"


def largest(params: PyTree) -> float:
    """The largest magnitude among parameters that are trained; NaN where one is no number."""
    return float(_largest(params))


@jax.jit
def _largest(params: PyTree) -> Array:
    sizes = [jnp.float32(0)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or not leaf.size:
            continue
        size = jnp.max(jnp.abs(leaf.astype(jnp.float32)))
        if re.search(FIXED, path_of(path)):
            # statistics are as large as what was measured, but must be numbers
            size = jnp.where(jnp.all(jnp.isfinite(leaf)), 0.0, size)
        sizes.append(size)
    return jnp.max(jnp.stack(sizes))


def _diverged(
    job: Job, store: Checkpoints, step: int, bad: int, metrics: Metrics, cause: str
) -> DivergedError:
    """The error that ends a stage."""
    many = f"{bad} steps in a row were not finite, the last" if bad > 1 else "not finite"
    kept = steps(store.root)
    last = "there is no checkpoint, so the same run_dir will do"
    if kept:
        last = (
            f"the last finite checkpoint is of step {kept[0]}; give another run_dir to change that"
        )
    what = wrong_metric(metrics) or "the loss is finite, the updated parameters are not"
    return DivergedError(
        f"stages.{job.name}: {many} at step {step} ({what}); {cause}; {last}", step
    )


def _until(stop: Stop, batches: Iterator[Any]) -> Generator[Any, None, None]:
    """The batches, until a signal: it may have reached the processes that prepare them as well."""
    try:
        yield from batches
    except Exception:
        if not stop():
            raise
