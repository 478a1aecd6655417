"""The loop of a stage: steps, log lines, evaluations, checkpoints; resumed where it was stopped.

Kill it at any moment and call `fit` with the same job: the final parameters are bit-identical to
an uninterrupted run, because a step depends on the state and on `batches(step, ...)` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from lw_jax.train.checkpoint import Checkpoints
from lw_jax.train.diagnostics import Journal, Window, check_finite
from lw_jax.train.progress import Display
from lw_jax.train.state import TrainState
from lw_jax.utils.signals import termination

SMOOTHING = 0.7
"""Decay of the averaged score that decides which checkpoint is the best: one lucky batch is not."""

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
            are scalars or small arrays; `loss` and `grad_norm` must stay finite.
        batches: `batches(start, stop)` gives the batches of those steps.
        identity: what a resumed run must share (see `Checkpoints`).
        log_every, save_every, eval_every: steps; `eval_every` 0 for never.
        keep: latest checkpoints kept.
        prepare: `prepare(state, start)`, before the first step of this leg (0-based `start`).
        evaluate: quick evaluation after some steps.
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
    prepare: Callable[[TrainState, int], None] | None = None
    evaluate: Callable[[TrainState, int], Evaluation] | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(checkpoint_root(self.directory, self.name), self.keep, self.identity)


def checkpoint_root(run: Path, stage: str) -> Path:
    """Where a stage's checkpoints are."""
    return run / "checkpoints" / stage


@dataclass
class _Progress:
    """What the host remembers between steps; JSON in every checkpoint.

    Attributes:
        window: sums since the last log line.
        smoothed: average of the scores so far.
        best: step and score of the best checkpoint.
    """

    window: Window
    smoothed: float | None = None
    best: dict[str, float] | None = None

    def score(self, value: float, step: int) -> bool:
        """Take a score in; whether this step is the best so far."""
        old = self.smoothed
        self.smoothed = value if old is None else SMOOTHING * old + (1 - SMOOTHING) * value
        top = self.best["score"] if self.best else float("-inf")
        # the raw score triggers, the smoothed one decides
        if value > top and self.smoothed > top:
            self.best = {"step": step, "score": self.smoothed}
            return True
        return False

    def to_json(self) -> dict[str, Any]:
        return {"window": self.window.sums, "smoothed": self.smoothed, "best": self.best}


def fit(job: Job) -> TrainState:
    """Take the job's steps, from its newest checkpoint if there is one.

    Raises:
        UserError: the loss is no number, or the checkpoints are of another run.
        SystemExit: code 0 after SIGTERM, with the state saved.
    """
    store, journal = job.checkpoints, Journal(job.directory / "diagnostics.jsonl", job.name)
    state, start, progress = job.state, 0, _Progress(Window())
    if found := store.restore(job.state):
        state, start, saved = found.state, found.step, found.progress
        progress = _Progress(Window(saved["window"]), saved["smoothed"], saved["best"])
    journal.rewind(start)
    if start >= job.steps:
        return state
    pending: tuple[int, Metrics] | None = None
    saved_at = start

    def settle() -> None:
        """Fetch the metrics of the step before, which the device has had time to finish."""
        nonlocal pending
        if pending is not None:
            step, on_device = pending
            metrics = jax.device_get(on_device)
            check_finite(job.name, step, metrics)
            progress.window.add(metrics)
            pending = None

    with ExitStack() as stack:
        terminated = stack.enter_context(termination())
        if job.prepare is not None:
            job.prepare(state, start)
        display = stack.enter_context(Display(job.name, start, job.steps))
        batches = stack.enter_context(closing(_until(terminated, job.batches(start, job.steps))))
        if start:
            display.say(f"resumed after step {start} of {job.steps}")
        done, since, at = start, time.monotonic(), start
        for done, batch in enumerate(batches, start + 1):
            state, metrics = job.step_for(done - 1)(state, batch)
            settle()
            pending = (done, metrics)
            display.step(done)
            last, save = done == job.steps, done % job.save_every == 0
            if done % job.log_every == 0 or last:
                settle()
                per_step = (time.monotonic() - since) / (done - at)
                since, at = time.monotonic(), done
                means = progress.window.close()
                journal.write(done, "train", means | {"seconds_per_step": per_step})
                display.train(done, means, per_step)
            if job.evaluate and job.eval_every and (done % job.eval_every == 0 or last):
                settle()
                began = time.monotonic()
                result = job.evaluate(state, done)
                if result.score is not None:
                    save = progress.score(result.score, done) or save
                took = {"seconds": time.monotonic() - began}
                journal.write(done, "evaluate", dict(result.metrics) | took)
                for line in result.samples:
                    display.say(line)
                since += took["seconds"]
            if save or last:
                settle()
                store.save(state, done, progress.to_json())
                saved_at = done
            if terminated():
                break
        if done < job.steps:
            if not terminated():
                raise RuntimeError(f"{job.name}: the batches ended after step {done}")
            settle()
            if saved_at < done:
                store.save(state, done, progress.to_json())
            display.say(f"stopped after step {done}: run the same command again to go on")
            raise SystemExit(0)
    return state


def _until(terminated: Callable[[], bool], batches: Iterator[Any]) -> Generator[Any, None, None]:
    """The batches, until SIGTERM: it may have reached the processes that prepare them as well."""
    try:
        yield from batches
    except Exception:
        if not terminated():
            raise
