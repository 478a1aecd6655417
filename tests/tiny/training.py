"""A run of two stages on a toy model: small enough to be killed many times.

    python tests/tiny/training.py DIRECTORY [--steps N] [--pause SECONDS] [--workers N]
        [--kill WHEN] [--event N --signal NAME] [--count]

WHEN is a place where the process kills itself: `save:N`, in the middle of writing the checkpoint
of step N; `seal:N`, before that is sealed; `delete`, in the middle of deleting an old one;
`evaluate:N`, in the first stage's evaluation after step N; `switch`, between the stages.

N is an event of the file system in the directory (something is opened, made, renamed, removed, from
1), at which the process sends itself a signal; `--count` prints how many there were.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lw_jax.data.prefetch import ahead
from lw_jax.train.loop import Evaluation, Job, fit
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.state import TrainState, apply_gradients, keep_finite, new_state

WIDTH = 8
EMA = 0.9


def fresh(params: Any = None, seed: int = 0) -> tuple[TrainState, optax.GradientTransformation]:
    """A state (of fresh parameters, unless some are given) and its optimiser."""
    if params is None:
        kernel = jax.random.normal(jax.random.key(seed), (WIDTH, WIDTH))
        params = {"mix": {"kernel": kernel}, "out": {"bias": jnp.zeros(WIDTH)}}
    optimiser = make_optimiser(OptimiserConfig(name="muon", lr=0.05), params, 30)
    return new_state(params, optimiser, jax.random.key(seed + 1), EMA), optimiser


def make_step(optimiser: optax.GradientTransformation) -> Any:
    """The compiled step; its noise comes from the state's random key."""

    def loss_fn(params: Any, x: jax.Array, rng: jax.Array) -> jax.Array:
        noise = 0.1 * jax.random.normal(rng, x.shape)
        y = jnp.tanh((x + noise) @ params["mix"]["kernel"] + params["out"]["bias"][None])
        return jnp.mean(jnp.square(y - x))

    def step(state: TrainState, x: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, x, state.step_rng())
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "histogram": jnp.sum(x, axis=0),
        }
        return keep_finite(state, apply_gradients(state, grads, optimiser, EMA), metrics)

    return jax.jit(step, donate_argnums=0)


def batch(step: int) -> np.ndarray:
    """The batch of a step depends on the step alone."""
    return np.random.default_rng(step).normal(size=(16, WIDTH)).astype(np.float32)


def batches(start: int, stop: int, workers: int = 0, pause: float = 0.0) -> Iterator[np.ndarray]:
    """The batches of some steps."""
    for made in ahead(batch, start, stop, workers):
        time.sleep(pause)
        yield made


def job(directory: Path, name: str = "first", **changes: Any) -> Job:
    """A stage of 30 steps that logs, evaluates and saves at steps that do not coincide."""
    state, optimiser = fresh()
    step = make_step(optimiser)
    fields: dict[str, Any] = {
        "name": name,
        "directory": directory,
        "steps": 30,
        "state": state,
        "step_for": lambda _: step,
        "batches": batches,
        "identity": {"config": {"lr": 0.05}, "fingerprints": {"sender": "abc"}},
        "log_every": 5,
        "save_every": 4,
        "eval_every": 6,
        "evaluate": lambda state, step: score(state),
    }
    return Job(**fields | changes)


def score(state: TrainState) -> Evaluation:
    """A figure of the parameters."""
    value = float(jnp.mean(state.evaluated()["mix"]["kernel"]))
    return Evaluation({"mean": value}, value, (f"mean {value}",))


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str) -> None:
    """Put a kill in the middle of writing or deleting a checkpoint."""
    kind, _, step = when.partition(":")
    if kind in ("save", "seal"):
        name = "rename" if kind == "save" else "replace"
        move = getattr(os, name)

        def stop_before(source: Any, target: Any, **more: Any) -> None:
            # orbax writes aside and moves into place at the end; the seal is moved into that
            if (Path(target) if kind == "save" else Path(target).parent).name == step:
                die()
            move(source, target, **more)

        setattr(os, name, stop_before)
    elif kind == "delete":

        def delete_half(path: Any, **more: Any) -> None:
            files = sorted(p for p in Path(path).rglob("*") if p.is_file())
            for file in files[: len(files) // 2]:
                file.unlink()
            die()

        shutil.rmtree = delete_half  # type: ignore[assignment]


FILE_EVENTS = (
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"),
    *("shutil.rmtree", "os.listdir"),
)


class FileEvents:
    """Counts the events of the file system in a directory, and sends a signal at one of them."""

    def __init__(self, directory: Path, at: int, number: int) -> None:
        self.directory, self.at, self.number, self.seen = str(directory), at, number, 0
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event in FILE_EVENTS and self.directory in str(arguments[:1]):
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), self.number)


def main() -> None:
    """Run both stages and print a line for the parent: the digest of the final parameters."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kill", default="")
    parser.add_argument("--event", type=int, default=0)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--count", action="store_true")
    given = parser.parse_args()
    arm(given.kill)
    events = FileEvents(given.directory, given.event, signal.Signals[given.signal])

    def slow(start: int, stop: int) -> Iterator[np.ndarray]:
        return batches(start, stop, given.workers, given.pause)

    def evaluate(state: TrainState, step: int) -> Evaluation:
        if given.kill == f"evaluate:{step}":
            die()
        return score(state)

    shared = {"steps": given.steps, "batches": slow}
    first = fit(job(given.directory, evaluate=evaluate, **shared))
    if given.kill == "switch":
        die()
    state, optimiser = fresh(first.evaluated(), seed=7)
    step = make_step(optimiser)
    last = fit(job(given.directory, "second", state=state, step_for=lambda _: step, **shared))
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves((last.params, last.ema))]
    if given.count:
        print("events", events.seen)
    print("final", hashlib.sha256(b"".join(leaves)).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
