"""The loop: what is logged, scored and saved, and when it stops."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.data.prefetch import ahead
from lw_jax.train.checkpoint import read_meta, steps
from lw_jax.train.diagnostics import Journal, Window
from lw_jax.train.loop import Evaluation, fit
from lw_jax.train.progress import headline
from lw_jax.train.state import TrainState, apply_gradients, decay_at
from tests.tiny.training import EMA, WIDTH, batch, batches, fresh, job, make_step


def diagnostics(directory: Path, kind: str) -> list[dict[str, Any]]:
    text = (directory / "diagnostics.jsonl").read_text()
    return [e for e in map(json.loads, text.splitlines()) if e["kind"] == kind]


@pytest.fixture(scope="module")
def compiled() -> Any:
    return make_step(fresh()[1])


def test_lines_hold_the_means_of_their_interval(compiled: Any, tmp_path: Path) -> None:
    state, losses = fresh()[0], []
    for number in range(7):
        state, metrics = compiled(state, batch(number))
        losses.append(float(metrics["loss"]))
    fit(job(tmp_path, steps=7, log_every=4, evaluate=None, step_for=lambda _: compiled))
    lines = diagnostics(tmp_path, "train")
    assert [line["step"] for line in lines] == [4, 7]
    np.testing.assert_allclose(lines[0]["loss"], np.mean(losses[:4]), rtol=1e-6)
    np.testing.assert_allclose(lines[1]["loss"], np.mean(losses[4:]), rtol=1e-6)
    assert len(lines[0]["histogram"]) == WIDTH
    assert lines[0]["seconds_per_step"] > 0


def test_processes_that_make_batches_start_before_the_programs_are_compiled(
    compiled: Any, tmp_path: Path
) -> None:
    seen: list[int] = []

    def prepare(state: TrainState, start: int) -> None:
        seen.append(len(multiprocessing.active_children()))

    made = partial(ahead, batch, workers=2)
    fit(
        job(
            tmp_path,
            steps=3,
            evaluate=None,
            step_for=lambda _: compiled,
            prepare=prepare,
            batches=made,
        )
    )
    assert seen == [2]


def test_each_step_has_its_own_plan(compiled: Any, tmp_path: Path) -> None:
    asked: list[int] = []

    def step_for(number: int) -> Any:
        asked.append(number)
        return compiled

    fit(job(tmp_path, steps=3, evaluate=None, step_for=step_for))
    assert asked == [0, 1, 2]


def test_steps_of_other_plans_may_lack_metrics() -> None:
    window = Window()
    window.add({"loss": 1.0, "share/kd": 0.5})
    window.add({"loss": 3.0})
    assert Window(json.loads(json.dumps(window.sums))).close() == {"loss": 2.0, "share/kd": 0.5}


def test_rows_that_are_left_out_are_seen() -> None:
    shown = {"loss": 1.5, "loss/kd": 1.5, "share/kd": 1.0}
    assert headline({**shown, "dropped": 0.0}) == "loss 1.5  share/kd 100%"
    assert headline({**shown, "dropped": 2.5}) == "loss 1.5  share/kd 100%  dropped 2.5"


def test_an_average_forgets_the_start_of_a_short_run_and_keeps_its_decay_in_a_long_one() -> None:
    left = 1.0
    for step in range(250):
        left *= float(decay_at(0.999, jnp.int32(step)))
    assert left < 1e-3  # 0.78 with 0.999 throughout
    assert float(decay_at(0.999, jnp.int32(20_000))) == pytest.approx(0.999)


def test_the_average_of_the_parameters(compiled: Any) -> None:
    state, optimiser = fresh()
    expected = jax.device_get(state.params)
    for number in range(3):
        state, _ = compiled(state, batch(number))
        now = jax.device_get(state.params)
        decay = min(EMA, (1 + number) / (10 + number))
        expected = jax.tree.map(
            lambda a, b, decay=decay: decay * a + (1 - decay) * b, expected, now
        )
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5)
    assert state.evaluated() is state.ema
    plain = state.replace(ema=None)  # type: ignore[attr-defined]
    moved = apply_gradients(plain, state.params, optimiser)
    assert moved.ema is None
    assert moved.evaluated() is moved.params
    assert int(moved.step) == 4


def test_the_random_key_of_a_step_is_its_own(compiled: Any) -> None:
    state = fresh()[0]
    keys = []
    for number in range(3):
        keys.append(tuple(np.asarray(jax.random.key_data(state.step_rng()))))
        state, _ = compiled(state, batch(number))
    assert len(set(keys)) == 3


def test_one_lucky_batch_is_not_the_best(compiled: Any, tmp_path: Path) -> None:
    """Fault 11 of docs/faults.md: the smoothed score decides, a raw one below it never does."""
    scores = dict(zip(range(1, 9), [0.1, 0.1, 0.9, 0.1, 0.2, 0.5, 0.5, 0.5], strict=True))

    def evaluate(state: TrainState, number: int) -> Evaluation:
        return Evaluation({}, scores[number])

    fit(
        job(
            tmp_path,
            steps=8,
            eval_every=1,
            save_every=100,
            evaluate=evaluate,
            step_for=lambda _: compiled,
        )
    )
    smoothed, best = scores[1], (scores[1], 1)
    for number in range(2, 9):
        smoothed = 0.7 * smoothed + 0.3 * scores[number]
        if scores[number] > best[0] and smoothed > best[0]:
            best = (smoothed, number)
    assert best[1] == 8
    root = tmp_path / "checkpoints/first"
    found = read_meta(root / "8")["progress"]["best"]
    assert found["step"] == best[1]
    assert found["score"] == pytest.approx(best[0])


def test_the_best_is_saved_when_it_is_found_and_kept(compiled: Any, tmp_path: Path) -> None:
    scores = {2: 0.2, 4: 0.6, 6: 0.1, 8: 0.1, 10: 0.1}

    def evaluate(state: TrainState, number: int) -> Evaluation:
        return Evaluation({}, scores[number])

    fit(
        job(
            tmp_path,
            steps=10,
            eval_every=2,
            save_every=3,
            keep=1,
            evaluate=evaluate,
            step_for=lambda _: compiled,
        )
    )
    assert steps(tmp_path / "checkpoints/first") == [10, 4]


def test_a_finished_stage_is_not_run_again(compiled: Any, tmp_path: Path) -> None:
    first = fit(job(tmp_path, steps=4, evaluate=None, step_for=lambda _: compiled))
    lines = (tmp_path / "diagnostics.jsonl").read_text()

    def never(start: int, stop: int) -> Iterator[Any]:
        raise AssertionError("no batch is needed")

    root = tmp_path / "checkpoints/first"
    for earlier in ("3", "1"):  # it was killed before its last save removed the oldest
        shutil.copytree(root / "4", root / earlier)
    again = fit(job(tmp_path, steps=4, evaluate=None, batches=never))
    assert steps(root) == [4, 3]
    chex.assert_trees_all_equal(again.params, first.params)
    assert (tmp_path / "diagnostics.jsonl").read_text() == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_is_prepared_once_a_leg_and_may_be_stopped_meanwhile(
    number: int, compiled: Any, tmp_path: Path
) -> None:
    begun: list[int] = []

    def prepare(state: TrainState, start: int) -> None:
        assert int(state.step) == start
        begun.append(start)
        if start == 0:  # as when it is stopped while programs are compiled
            os.kill(os.getpid(), number)

    def leg() -> TrainState:
        own = {"prepare": prepare, "evaluate": None, "step_for": lambda _: compiled}
        return fit(job(tmp_path, steps=4, **own))

    with pytest.raises(SystemExit) as stopped:
        leg()
    assert stopped.value.code == 128 + number
    assert steps(tmp_path / "checkpoints/first") == []
    number = 0  # a check that the process may be signalled
    leg()
    assert steps(tmp_path / "checkpoints/first")[0] == 4
    leg()
    assert begun == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_steps_saves_and_its_code_is_that_of_shells(
    number: int, compiled: Any, tmp_path: Path
) -> None:
    def asked(start: int, stop: int) -> Iterator[Any]:
        for step in range(start, stop):
            if step == 2:
                os.kill(os.getpid(), number)
            yield batch(step)

    own = {"evaluate": None, "step_for": lambda _: compiled}
    with pytest.raises(SystemExit) as stopped:
        fit(job(tmp_path, steps=9, batches=asked, **own))
    assert stopped.value.code == 128 + number
    assert steps(tmp_path / "checkpoints/first") == [3]
    last = fit(job(tmp_path, steps=9, **own))
    chex.assert_trees_all_equal(last.params, fit(job(tmp_path / "other", steps=9, **own)).params)


def test_a_second_interrupt_ends_it_at_once(compiled: Any, tmp_path: Path) -> None:
    def asked(start: int, stop: int) -> Iterator[Any]:
        for step in range(start, stop):
            yield batch(step)
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(job(tmp_path, evaluate=None, batches=asked, step_for=lambda _: compiled))
    assert steps(tmp_path / "checkpoints/first") == []
    assert signal.getsignal(signal.SIGINT) is before


def test_batches_that_end_too_early_are_an_error(compiled: Any, tmp_path: Path) -> None:
    def few(start: int, stop: int) -> Iterator[Any]:
        return batches(start, 2)

    with pytest.raises(RuntimeError, match="the batches ended after step 2"):
        fit(job(tmp_path, steps=4, batches=few, evaluate=None, step_for=lambda _: compiled))


def test_lines_of_other_stages_stay(tmp_path: Path) -> None:
    """Fault 12 of docs/faults.md; a line cut short by a crash goes."""
    path = tmp_path / "diagnostics.jsonl"
    one, two = Journal(path, "one"), Journal(path, "two")
    for number in (5, 10):
        one.write(number, "train", {"loss": 1.0})
    two.write(5, "train", {"loss": 2.0})
    with path.open("a") as file:
        file.write('{"stage": "two", "st')
    two.rewind(0)
    assert [(e["stage"], e["step"]) for e in diagnostics(tmp_path, "train")] == [
        ("one", 5),
        ("one", 10),
    ]
    one.rewind(5)
    assert [e["step"] for e in diagnostics(tmp_path, "train")] == [5]
