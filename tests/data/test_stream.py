"""Streams: pure batches, the same ones prepared ahead, from any step on, by any workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest

from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.data.prefetch import ahead
from lw_jax.data.source import ListRows
from lw_jax.data.stream import Stream
from lw_jax.errors import UserError


def collate(groups):
    """Picklable, and tells every group from every other."""
    text = ["|".join(f"{e.id}:{e.question}" for e in group) for group in groups]
    return {"text": np.array(text), "lengths": np.array([len(g[0].context) for g in groups])}


def some_rows(contexts, questions=1):
    return ListRows(
        [
            tuple(
                Example(f"{c}/{q}", str(c), f"context {c}", f"{q}?", ("a",))
                for q in range(questions)
            )
            for c in range(contexts)
        ],
        [],
    )


def equal(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one)


def ids(stream, step):
    return [[example.id for example in group] for group in stream.items(step)]


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_gives_the_same_batches_from_any_step(workers):
    stream = Stream(FactsRows("train", 0, 2, 50), collate, 8, 1, "train", 3, workers)
    expected = [stream.batch(step) for step in range(16)]  # over epochs of 6 steps
    for start, stop in [(5, 16)] if workers else [(0, 7), (5, 16)]:
        found = list(stream.iterate(start, stop))
        assert len(found) == stop - start
        assert all(equal(a, b) for a, b in zip(found, expected[start:stop], strict=True))


def test_a_batch_depends_on_seed_stage_and_step_alone():
    def stream(seed=0, stage="a"):
        return Stream(FactsRows("train", 0, 6, 10**8), collate, 4, seed, stage, 2)

    assert ids(stream(), 7) == ids(stream(), 7)
    others = [ids(stream(), 8), ids(stream(seed=1), 7), ids(stream(stage="b"), 7)]
    assert all(other != ids(stream(), 7) for other in others)
    late = ids(stream(), 10**9)  # position costs nothing, however far
    assert late == ids(stream(), 10**9)


def test_an_endless_stream_can_be_left():
    batches = Stream(FactsRows("train", 0, 1, 10**8), collate, 4).iterate(3)
    assert equal(next(batches), Stream(FactsRows("train", 0, 1, 10**8), collate, 4).batch(3))
    batches.close()


@pytest.mark.parametrize("in_memory", [0, 1000])
def test_every_epoch_has_every_row_once_in_another_order(in_memory, monkeypatch):
    monkeypatch.setattr("lw_jax.data.stream.IN_MEMORY", in_memory)
    stream = Stream(some_rows(12), collate, 4)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in stream.indices(step)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("contexts", "batch"), [(10, 4), (4, 4), (7, 5)])
def test_a_batch_has_no_context_twice(contexts, batch):
    stream = Stream(some_rows(contexts), collate, batch)
    seen = Counter()
    for step in range(100):
        indices = stream.indices(step)
        assert len(set(indices)) == len(indices) == batch
        seen.update(indices)
    assert set(seen) == set(range(contexts))


def test_fewer_contexts_than_the_batch_fill_it_evenly():
    stream = Stream(some_rows(3), collate, 7)
    for step in range(5):
        assert set(Counter(stream.indices(step)).values()) <= {1, 2, 3}


def test_questions_are_chosen_at_random_and_repeated_where_short():
    stream = Stream(some_rows(8, questions=5), collate, 8, questions=2)
    chosen = [tuple(group) for step in range(40) for group in ids(stream, step)]
    assert all(len(set(group)) == 2 for group in chosen)
    assert len(set(chosen)) > 100
    short = Stream(some_rows(8, questions=2), collate, 8, questions=3)
    assert all(len(g) == 3 and len(set(g)) == 2 for g in ids(short, 0))
    everything = Stream(some_rows(8, questions=5), collate, 8, questions=0)
    assert all(len(group) == 5 for group in ids(everything, 0))


def short_ones(groups):
    """Rows of which only every ninth is short enough."""
    return {"valid": np.array([int(e.context_id) % 9 == 0 for group in groups for e in group])}


def any_row(batch):
    return bool(batch["valid"].any())


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_has_a_row_that_can_be_used(workers):
    def stream(usable):
        return Stream(some_rows(90, 3), short_ones, 4, 3, "fit", 2, workers, usable)

    free, stop = stream(None), 30 if workers else 200
    made = list(stream(any_row).iterate(7, stop))
    drawn = [free.batch(step) for step in range(7, stop)]
    empty = [not any_row(batch) for batch in drawn]
    assert any(empty) and not all(empty)
    assert all(any_row(batch) for batch in made)
    same = [equal(a, b) for a, b in zip(made, drawn, strict=True)]
    assert same == [not one for one in empty]  # no other batch is drawn otherwise
    assert equal(stream(any_row).batch(stop - 1), made[-1])  # and resumed runs draw the same


def test_a_batch_drawn_again_has_no_context_twice_and_other_contexts_each_time():
    stream = Stream(some_rows(50, 3), short_ones, 4, questions=2)
    drawn = [[g[0].context_id for g in stream.items(5, again)] for again in range(6)]
    assert all(len(set(one)) == 4 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 6
    assert len(Stream(some_rows(3), short_ones, 7).items(5, 1)) == 7


def test_no_batch_that_can_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr("lw_jax.data.stream.TRIES", 5)
    rows = ListRows([some_rows(9)[i] for i in range(1, 9)], [])
    with pytest.raises(UserError, match=r"^data: none of 5 batches for step 4 of fit has a row"):
        Stream(rows, short_ones, 2, stage="fit", usable=any_row).batch(3)


def raises(groups):
    raise UserError("a row is wrong")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_reaches_the_caller(workers):
    with pytest.raises(UserError, match="a row is wrong"):
        next(Stream(some_rows(8), raises, 4, workers=workers).iterate())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"questions": -1}, {"workers": -1}])
def test_wrong_arguments(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}: expected at least"):
        Stream(**({"rows": some_rows(3), "collate": collate, "batch_size": 2} | wrong))


def test_no_rows():
    with pytest.raises(UserError, match=r"^data: no rows"):
        Stream(some_rows(0), collate, 2)


def large(number):
    """More than a pipe holds: a worker is always amid writing one."""
    return np.full(2**20, number, np.float32)


def longest(number, held):
    return number + len(held)


def test_workers_begin_at_once_and_nobody_waits_for_their_start():
    """However much it takes to make batches: more than a pipe holds."""
    began = time.monotonic()
    batches = ahead(partial(longest, held=bytes(2**23)), 1, 6, workers=2)
    assert len(multiprocessing.active_children()) == 2
    started = time.monotonic() - began
    assert list(batches) == [2**23 + number for number in range(1, 6)]
    assert started < (time.monotonic() - began) / 2
    ahead(large, workers=1)  # whose batches nobody takes
    assert not multiprocessing.active_children()


def test_a_sigterm_that_reaches_the_workers_stops_no_batch():
    batches = ahead(large, 3, 9, workers=2)
    got = [next(batches)[0]]
    time.sleep(0.2)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    got += [batch[0] for batch in batches]
    assert got == [3, 4, 5, 6, 7, 8]
    assert not multiprocessing.active_children()


def test_a_worker_killed_amid_a_batch_hangs_nobody():
    batches = ahead(large, 0, None, workers=2)
    next(batches)
    time.sleep(0.2)
    began = time.monotonic()
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"died \(exit code -9\)"):
        for _ in batches:
            pass
    assert time.monotonic() - began < 5
    assert not multiprocessing.active_children()


KILLED = """
import multiprocessing, os, signal
from lw_jax.data.facts import FactsRows
from lw_jax.data.stream import Stream

if __name__ == "__main__":
    batches = Stream(FactsRows("train", 0, 1, 10**8), list, 4, workers=1).iterate()
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_run(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    said = tmp_path / "worker"
    with said.open("w") as out:  # not a pipe: a worker that lives on would hold it open
        run = subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | {"PYTHONPATH": root},
            stdout=out,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )
    assert run.returncode == -signal.SIGKILL
    worker = int(said.read_text())
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail(f"worker {worker} outlives the run that started it")


def test_rows_and_layout_need_no_jax():
    """Worker processes start fast, and never touch the accelerator."""
    code = (
        "import sys, importlib, pkgutil, lw_jax.data as d\n"
        "for m in pkgutil.iter_modules(d.__path__):\n"
        "    importlib.import_module(f'lw_jax.data.{m.name}')\n"
        "import lw_jax.text.collate, lw_jax.text.buckets, lw_jax.train.curriculum\n"
        "assert 'jax' not in sys.modules"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize("in_memory", [0, 1000])
def test_the_order_of_rows_is_the_seeds_and_the_stages(in_memory, monkeypatch):
    """Rows apart from the questions that are chosen of them."""
    monkeypatch.setattr("lw_jax.data.stream.IN_MEMORY", in_memory)

    def order(seed, stage):
        stream = Stream(some_rows(24), collate, 4, seed, stage)
        return [stream.indices(step) for step in range(6)]

    assert order(1, "fit") == order(1, "fit")
    assert order(1, "fit") != order(2, "fit")
    assert order(1, "fit") != order(1, "read")


def test_rows_that_just_fit_into_memory_are_shuffled_there(monkeypatch):
    def order():
        stream = Stream(some_rows(12), collate, 4)
        return [stream.indices(step) for step in range(6)]

    held = order()
    monkeypatch.setattr("lw_jax.data.stream.IN_MEMORY", 12)
    assert order() == held
    monkeypatch.setattr("lw_jax.data.stream.IN_MEMORY", 11)
    assert order() != held


def test_of_as_many_rows_as_a_batch_has_each_batch_is_by_length():
    """Rows of like lengths stand together: of one batch all, the shortest first."""
    stream = Stream(some_rows(12), collate, 12, length=lambda group: -int(group[0].context_id))
    assert stream.indices(0) == stream.indices(3) == list(range(11, -1, -1))
