"""Checkpoints: damaged ones, those of other runs, other meshes, what is kept, what is loaded."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import resource
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.train.checkpoint import (
    Checkpoints,
    check_counts,
    component_counts,
    first_difference,
    load_params,
    steps,
)
from lw_jax.train.optimiser import make_optimiser, trained_leaves
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.state import TrainState, apply_gradients, new_state
from lw_jax.utils.failures import in_one_line
from lw_jax.utils.schedule import Schedule
from tests.tiny.training import fresh

IDENTITY: dict[str, Any] = {
    "config": {"stages": {"wire": {"lr": 0.05, "log_every": 5}}, "betas": (0.9, 0.95)},
    "fingerprints": {"sender": "abc"},
}


@pytest.fixture(scope="module")
def state() -> TrainState:
    return fresh()[0]


def marked(state: TrainState, value: float) -> TrainState:
    """The state with another value in a parameter and in its average."""
    params = {**state.params, "out": {"bias": jnp.full_like(state.params["out"]["bias"], value)}}
    return state.replace(params=params, ema=params)  # type: ignore[attr-defined]


def store_of(root: Path, identity: Any = IDENTITY, keep: int = 2) -> Checkpoints:
    return Checkpoints(root, keep, identity)


def saved(root: Path, state: TrainState, *numbers: int) -> Checkpoints:
    """Checkpoints of some steps, each marked by its number."""
    store = store_of(root)
    for number in numbers:
        store.save(marked(state, number), number, {"best": None})
    return store


def mark(restored: Any) -> tuple[int, float]:
    return restored.step, float(restored.state.params["out"]["bias"][0])


def test_the_whole_state_comes_back(state: TrainState, tmp_path: Path) -> None:
    store = saved(tmp_path, state, 3)
    found = store.restore(state)
    assert found is not None
    chex.assert_trees_all_equal(found.state.replace(rng=0), marked(state, 3).replace(rng=0))
    assert (jax.random.key_data(found.state.rng) == jax.random.key_data(state.rng)).all()
    assert found.state.rng.dtype == state.rng.dtype
    assert found.progress == {"best": None}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_with_leaves_that_are_not_trained_comes_back(name: Any, tmp_path: Path) -> None:
    params = {"old": {"kernel": jnp.ones((4, 3))}, "new": {"kernel": jnp.ones((4, 3))}}
    cfg = OptimiserConfig(name=name, schedule=Schedule())
    made = make_optimiser(cfg, params, 9, trained_leaves(params, ("new",), ()))
    before = new_state(params, made, jax.random.key(0))
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    state = jax.jit(lambda s: apply_gradients(s, grads, made))(before)
    store = store_of(tmp_path)
    store.save(state, 1, {})
    found = store.restore(before)
    assert found is not None
    chex.assert_trees_all_equal(found.state.replace(rng=0), state.replace(rng=0))


def truncate(path: Path) -> None:
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    """The bits of the numbers themselves."""
    for file in path.rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))


def lose_metadata(path: Path) -> None:
    (path / "_CHECKPOINT_METADATA").unlink()


def lose_a_part(path: Path) -> None:
    shutil.rmtree(path / "rest")


def empty_everything(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


DAMAGES = [truncate, flip_a_bit, lose_metadata, lose_a_part, empty_everything]


@pytest.mark.parametrize("damage", DAMAGES, ids=[d.__name__ for d in DAMAGES])
def test_a_damaged_checkpoint_falls_back_and_says_so(
    damage: Callable[[Path], None],
    state: TrainState,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = saved(tmp_path, state, 3, 6)
    damage(tmp_path / "6")
    found = store.restore(state)
    assert found is not None
    assert mark(found) == (3, 3.0)
    said = capsys.readouterr().out
    assert str(tmp_path / "6") in said
    assert "damaged" in said
    store.save(marked(state, 6), 6, {})  # its place is free again
    again = store.restore(state)
    assert again is not None
    assert mark(again) == (6, 6.0)


@pytest.mark.parametrize("damage", DAMAGES, ids=[d.__name__ for d in DAMAGES])
def test_an_evaluation_falls_back_too(
    damage: Callable[[Path], None],
    state: TrainState,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(tmp_path, state, 3, 6)
    damage(tmp_path / "6")
    if damage is lose_a_part:  # an evaluation does not read the optimiser
        shutil.rmtree(tmp_path / "6" / "ema")
    params, meta = load_params(tmp_path, state.params)
    assert (meta["step"], float(params["out"]["bias"][0])) == (3, 3.0)
    assert "damaged" in capsys.readouterr().out


def test_nothing_to_restore(state: TrainState, tmp_path: Path) -> None:
    assert store_of(tmp_path / "none").restore(state) is None
    with pytest.raises(UserError, match="no checkpoint"):
        load_params(tmp_path, state.params)


def test_where_all_are_damaged_the_stage_does_not_start_anew_unasked(
    state: TrainState, tmp_path: Path
) -> None:
    store = saved(tmp_path / "fit", state, 3, 6)
    for step in ("3", "6"):
        lose_metadata(tmp_path / "fit" / step)
    for _ in range(2):  # nothing is renamed, so it is refused again
        with pytest.raises(UserError, match=r"6 is damaged \(_CHECKPOINT_METADATA is missing"):
            store.restore(state)
        with pytest.raises(UserError, match="6 is damaged, and there is no whole checkpoint"):
            load_params(tmp_path / "fit", state.params)
    shutil.rmtree(tmp_path / "fit")  # the way out that it names
    assert store.restore(state) is None


def test_another_optimiser_is_no_damage(state: TrainState, tmp_path: Path) -> None:
    store = saved(tmp_path, state, 3, 6)
    other = new_state(state.params, optax.chain(optax.clip(1.0), optax.adam(1e-3)), state.rng, 0.9)
    with pytest.raises(UserError, match=r"6 is whole, but does not fit .*init_from") as caught:
        store.restore(other)
    assert "\n" not in str(caught.value)
    assert steps(tmp_path) == [6, 3]
    assert store.restore(state) is not None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Error reading: too many open files"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("UNAVAILABLE: the storage does not answer"),
    ],
    ids=lambda error: str(error)[:20],
)
@pytest.mark.parametrize("where", ["load", "metadata"])
def test_a_passing_error_of_the_file_system_is_no_damage(
    error: Exception,
    where: str,
    state: TrainState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = saved(tmp_path, state, 3)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp, where, fail)
        for read in (lambda: store.restore(state), lambda: load_params(tmp_path, state.params)):
            with pytest.raises(UserError, match="3 cannot be read: ") as caught:
                read()
            assert "\n" not in str(caught.value)
    assert "damaged" not in capsys.readouterr().out
    found = store.restore(state)
    assert found is not None and found.step == 3


def test_a_kill_before_the_seal_loses_nothing_and_is_not_called_damage(
    state: TrainState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = saved(tmp_path, state, 3, 6)
    (tmp_path / "6" / "files.json").unlink()
    found = store.restore(state)
    assert found is not None and mark(found) == (6, 6.0)
    assert (tmp_path / "6" / "files.json").is_file()  # it is sealed now
    (tmp_path / "6" / "files.json").unlink()
    truncate(tmp_path / "6")  # and one that is not whole is removed
    found = store.restore(state)
    assert found is not None and mark(found) == (3, 3.0)
    assert {p.name for p in tmp_path.iterdir()} == {"3"}
    assert capsys.readouterr().out == ""


def test_a_directory_is_checked_against_its_own_step(
    state: TrainState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = saved(tmp_path, state, 3)
    shutil.copytree(tmp_path / "3", tmp_path / "10")
    found = store.restore(state)
    assert found is not None and found.step == 3
    assert "10 is damaged (it is of step 3; rename it to that); going back to step 3" in (
        capsys.readouterr().out
    )
    (tmp_path / "3").rename(tmp_path / "8")
    with pytest.raises(UserError, match="8 is damaged"):
        load_params(tmp_path, state.params)


def test_what_is_set_aside_goes_with_the_next_save(state: TrainState, tmp_path: Path) -> None:
    store = saved(tmp_path, state, 3, 6)
    truncate(tmp_path / "6")
    assert store.restore(state) is not None
    assert {p.name for p in tmp_path.iterdir()} == {"3", "6.damaged"}
    store.save(marked(state, 4), 4, {})
    assert {p.name for p in tmp_path.iterdir()} == {"3", "4"}


def test_odd_names_in_the_directory_are_left_alone(state: TrainState, tmp_path: Path) -> None:
    store = saved(tmp_path, state, 3, 6)
    files = {"x-tmp1", "6.damaged", "7", ".DS_Store", "05", "8.deleted"}
    folders = {"\u00b2", "\u0663", "007", "-1", "notes-tmp", "best"}
    for name in files:
        (tmp_path / name).write_text("mine")
    for name in folders:
        (tmp_path / name).mkdir()
    truncate(tmp_path / "6")
    found = store.restore(state)
    assert found is not None and found.step == 3
    assert steps(tmp_path) == [3]
    store.save(marked(state, 7), 7, {})
    assert steps(tmp_path) == [7, 3]
    assert {p.name for p in tmp_path.iterdir()} >= (files - {"7"}) | folders


@pytest.mark.parametrize("content", ["[]", "null", "{}", "3", '{"a": ', "\udcff", ""])
def test_a_seal_of_any_shape(content: str, state: TrainState, tmp_path: Path) -> None:
    store = saved(tmp_path, state, 3, 6)
    (tmp_path / "6/files.json").write_bytes(content.encode(errors="surrogateescape"))
    found = store.restore(state)
    assert found is not None and found.step == 3


def test_a_save_that_fails_leaves_what_was_there(
    state: TrainState, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for a full disk."""
    store = saved(tmp_path, state, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        with pytest.raises((OSError, ValueError)) as caught:
            store.save(marked(state, 6), 6, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = in_one_line(caught.value)
    assert said is not None and "run the same command again" in said
    assert "Traceback" not in capfd.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"3"}
    store.save(marked(state, 6), 6, {})
    found = store.restore(state)
    assert found is not None and mark(found) == (6, 6.0)


def test_what_threads_of_a_failed_save_say_late_is_not_said(
    state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[logging.LogRecord] = []
    heard: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    logging.getLogger("absl").addHandler(handler)

    def late() -> None:
        time.sleep(0.3)
        logging.getLogger("absl").error("run() raised an exception")

    def fails(*_: Any, **__: Any) -> None:
        threading.Thread(target=late).start()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(str(args.exc_value)))
    monkeypatch.setattr(ocp, "save_checkpointables", fails)
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                store_of(tmp_path).save(state, 3, {})
        time.sleep(0.4)
        assert not logged
        for line in ("Event loop is closed", "something else"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(line)))  # type: ignore[arg-type]
        assert heard == ["something else"]
    finally:
        logging.getLogger("absl").removeHandler(handler)


def test_what_a_failed_read_never_began_is_not_said_late(
    state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax reads arrays and what is said of them at once, and closes its loop at an error."""
    begun: list[int] = []

    async def file(i: int) -> None:
        begun.append(i)

    async def files() -> None:  # one at each turn of the loop: the last has none left
        for i in range(20):
            asyncio.gather(file(i))
            await asyncio.sleep(0)

    class Promised:  # not a coroutine: asyncio waits for it in a generator
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def arrays() -> None:
        raise ValueError("not of this shape")

    async def both() -> None:
        await asyncio.gather(files(), arrays(), Promised())

    def fails(*_: Any, **__: Any) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(both())
        finally:
            loop.close()

    store = saved(tmp_path, state, 3)
    monkeypatch.setattr(ocp, "load", fails)
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(str(args.exc_value)))
    with pytest.raises(UserError, match="not of this shape"):
        store.restore(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert 0 < len(begun) < 20 and not heard


def test_the_steps_of_a_stage_may_be_more(state: TrainState, tmp_path: Path) -> None:
    def of(count: int) -> Checkpoints:
        config = {"config": {"stages": {"wire": {"train": {"steps": count}}}}}
        return store_of(tmp_path, config)

    of(5).save(marked(state, 5), 5, {"best": None})
    assert of(9).restore(state) is not None
    with pytest.raises(UserError, match=r"config\.stages\.wire\.train\.steps: .*5, now it is 4"):
        of(4).restore(state)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprints": {"sender": "xyz"}}, r"fingerprints\.sender: .*'abc', now it is 'xyz'"),
        (
            {"config": {"stages": {"wire": {"lr": 0.1}}, "betas": (0.9, 0.95)}},
            r"config\.stages\.wire\.lr: .*0\.05, now it is 0\.1",
        ),
        (
            {"config": IDENTITY["config"] | {"film": True}},  # an option that came later, on
            r"config\.film: .*None, now it is True",
        ),
    ],
)
def test_another_run_is_refused_with_the_reason(
    change: dict[str, Any], says: str, state: TrainState, tmp_path: Path
) -> None:
    saved(tmp_path, state, 3)
    with pytest.raises(UserError, match=says) as caught:
        store_of(tmp_path, IDENTITY | change).restore(state)
    assert "\n" not in str(caught.value)
    assert steps(tmp_path) == [3]


def test_what_changes_nothing_may_differ(state: TrainState, tmp_path: Path) -> None:
    saved(tmp_path, state, 3)
    wire = {"lr": 0.05, "log_every": 50, "keep": 7}
    wire |= {"film": False, "private": 0, "refiner": None}  # options that came later, off
    config = {"stages": {"wire": wire}, "betas": [0.9, 0.95], "run_dir": "elsewhere"}
    now = IDENTITY | {"config": config, "attention": {"reader": "cudnn"}}
    assert store_of(tmp_path, now).restore(state) is not None


def test_other_parameters_are_refused_and_not_called_damaged(
    state: TrainState, tmp_path: Path
) -> None:
    saved(tmp_path, state, 3)
    params = {**state.params, "extra": {"bias": jnp.zeros(4)}}
    with pytest.raises(UserError, match="component extra/bias: 0 parameters were trained, 4 would"):
        store_of(tmp_path).restore(state.replace(params=params))  # type: ignore[attr-defined]
    assert steps(tmp_path) == [3]


def test_the_latest_and_the_best_are_kept(state: TrainState, tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for number in range(1, 7):
        best = {"step": 2, "score": 0.5} if number >= 2 else None
        store.save(marked(state, number), number, {"best": best})
    assert steps(tmp_path) == [6, 5, 2]
    for which, step in (("last", 6), ("best", 2)):
        params, meta = load_params(tmp_path, state.params, which)  # type: ignore[arg-type]
        assert (meta["step"], float(params["out"]["bias"][0])) == (step, step)


def test_an_evaluation_reads_the_average(state: TrainState, tmp_path: Path) -> None:
    averaged = state.replace(ema=marked(state, 5).params)  # type: ignore[attr-defined]
    store_of(tmp_path).save(averaged, 1, {})
    params, _ = load_params(tmp_path, state.params)
    assert float(params["out"]["bias"][0]) == 5.0


def test_one_part_of_the_tree(state: TrainState, tmp_path: Path) -> None:
    saved(tmp_path, state, 3)
    params, _ = load_params(tmp_path, {"out": state.params["out"]}, part="out")
    assert list(params) == ["out"]
    assert float(params["out"]["bias"][0]) == 3.0


def test_what_is_loaded_must_equal_what_was_trained(state: TrainState) -> None:
    trained = component_counts(state.params)
    assert trained == {"mix/kernel": 64, "out/bias": 8}
    check_counts(state.params, trained)
    with pytest.raises(UserError, match="component mix/kernel: 64 parameters were trained, 0"):
        check_counts({"out": state.params["out"]}, trained)


def test_another_mesh(state: TrainState, tmp_path: Path) -> None:
    """Saved in shards over 8 devices, read in shards over 2 x 4, and on one device."""

    def on(mesh: Any, spec: PartitionSpec) -> TrainState:
        def put(x: jax.Array) -> jax.Array:
            shard = x.ndim == 2 and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            return jax.device_put(x, NamedSharding(mesh, spec if shard else PartitionSpec()))

        return jax.tree.map(put, marked(state, 4))

    wide = on(make_mesh(MeshConfig()), PartitionSpec("data"))
    store = store_of(tmp_path)
    store.save(wide, 1, {})
    for mesh, shape in ((MeshConfig(data=2, tensor=4), (4, 2)), (MeshConfig(data=1), (8, 8))):
        like = on(make_mesh(mesh), PartitionSpec("data", "tensor"))
        found = store.restore(like)
        assert found is not None
        kernel = found.state.params["mix"]["kernel"]
        assert kernel.sharding == like.params["mix"]["kernel"].sharding
        assert {s.data.shape for s in kernel.addressable_shards} == {shape}
        np.testing.assert_array_equal(kernel, wide.params["mix"]["kernel"])


def test_a_key_that_came_later_is_no_difference_if_it_does_what_was_done_before() -> None:
    old = {"bridge": {"reader": {"soft_tokens": {"film": True}}}}
    for later in ({"film_from": "mean"}, {"use": "expanded", "dropout": 0.0}, {"start": "normal"}):
        now = {"bridge": {"reader": {"soft_tokens": {"film": True, **later}}}}
        assert first_difference(old, now) is None
    now = {"bridge": {"reader": {"soft_tokens": {"film": True, "film_from": "slot"}}}}
    key = "bridge.reader.soft_tokens.film_from"
    assert first_difference(old, now) == (key, None, "slot")
