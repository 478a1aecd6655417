"""Checkpoints of one stage: orbax directories `<root>/<step>`, the latest few and the best.

A checkpoint is written beside its place, renamed into it, and sealed: a kill at any moment leaves
the ones before it whole. Frozen weights are never in one: their fingerprints are.

Damaged is a checkpoint whose files are not those that were sealed, whose numbers have another
checksum, or that is of another step than its directory says. Anything else that goes wrong while
one is read (another optimiser's state, a disk that does not answer) says nothing about it: that is
an error, and nothing is renamed.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import re
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from lw_jax.bridge.paths import chosen_parts, components, from_paths, nested
from lw_jax.errors import UserError, said
from lw_jax.mesh import fetch
from lw_jax.models.fingerprint import as_saved
from lw_jax.train.state import TrainState
from lw_jax.types import PyTree
from lw_jax.utils import hosts
from lw_jax.utils.failures import in_one_line, of_storage
from lw_jax.utils.files import (
    DamagedFileError,
    check_manifest,
    has_manifest,
    number_of,
    write_manifest,
)
from lw_jax.utils.resume import FREE, as_before, raised

_UNFINISHED = re.compile(r"[0-9]+\.(deleted|orbax-checkpoint-tmp.*)")
_DAMAGED = re.compile(r"[0-9]+\.damaged")
_THREADS_END = 5.0
"""Seconds that threads of a failed save or read are waited for."""


@dataclass(frozen=True)
class Restored:
    """A state read back.

    Attributes:
        state: the state.
        step: after which it was saved.
        progress: the JSON that was saved with it.
    """

    state: TrainState
    step: int
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a stage.

    Attributes:
        root: their directory.
        keep: number of latest checkpoints that are kept, besides the best.
        identity: JSON tree (`config`, `fingerprints`, ...) that must be the same on resuming, but
            for `FREE` keys.
    """

    root: Path
    keep: int
    identity: Mapping[str, Any]

    def save(self, state: TrainState, step: int, progress: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`; `progress["best"]["step"]` is kept besides the latest."""
        parts = _parts(state)
        meta = {
            "step": step,
            "progress": dict(progress),
            "identity": dict(self.identity),
            "parameters": component_counts(state.params),
            "checksums": {name: checksum(part) for name, part in parts.items()},
        }
        path = self.root.absolute() / str(step)
        if hosts.first() and path.exists() and not path.is_dir():
            path.rename(_free_name(path))  # no checkpoint, whatever it is
        try:
            with _quiet():
                ocp.save_checkpointables(path, parts, custom_metadata=meta)
            write_manifest(path)
        except Exception:  # what is half-written takes room that may be what is missing
            if hosts.first():
                self._remove_unfinished()
            raise
        if hosts.first():
            self.remove_old(progress)
        hosts.meet(f"the end of saving {path}")

    def remove_old(self, progress: Mapping[str, Any]) -> None:
        """Removes checkpoints that are not kept, and damaged ones that were set aside.

        `save` does; it is for one host, and for a run that was killed before its last save did.
        """
        best = (progress.get("best") or {}).get("step")
        for old in steps(self.root)[self.keep :]:
            if old != best:
                _remove(self.root / str(old))
        for aside in _directories(self.root, _DAMAGED):
            shutil.rmtree(aside)

    def _remove_unfinished(self) -> None:
        """Removes what a failed save has written; Orbax's other threads may still be at it."""
        for _ in range(20):
            left = _directories(self.root, _UNFINISHED)
            if not left:
                return
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)

    def restore(self, like: TrainState) -> Restored | None:
        """The newest whole checkpoint, laid out as `like` (shapes, dtypes, shardings); None if
        there is none. Damaged ones are named, and the one before is taken; they are then set aside.

        Raises:
            UserError: the checkpoint belongs to other frozen weights, another config, bridge or
                optimiser; it cannot be read; or all of them are damaged.
        """
        hosts.meet(f"the checkpoints in {self.root}")
        for leftover in _directories(self.root, _UNFINISHED) if hosts.first() else ():
            shutil.rmtree(leftover)  # of a run that was killed while it deleted or wrote
        damage: dict[Path, str] = {}
        for step in steps(self.root):
            path = self.root / str(step)
            try:
                found = self._restored(path, like)
            except DamagedFileError as error:
                damage[path] = str(error)
                continue
            for bad, why in damage.items() if hosts.first() else ():
                if not has_manifest(bad):  # it was not finished
                    shutil.rmtree(bad)
                    continue
                print(f"checkpoint {bad} is damaged ({why}); going back to step {step}")
                bad.rename(_free_name(bad))
            hosts.meet(f"checkpoint {path}")
            return found
        if damage:
            path, why = next(iter(damage.items()))
            raise UserError(
                f"{path} is damaged ({why}), and there is no whole checkpoint before it: put back "
                f"a copy of it, or delete {self.root} to train this stage from its start"
            )
        return None

    def _restored(self, path: Path, like: TrainState) -> Restored:
        """One checkpoint; one that was killed before it was sealed is sealed if it is whole.

        Raises:
            DamagedFileError: it is damaged, or was not finished.
            UserError: see `restore`.
        """
        sealed = has_manifest(path)
        meta = read_meta(path, sealed)
        if old_names(meta["parameters"]):
            raise UserError(
                f"{self.root}: an earlier version began this run, whose parameters have "
                "other names; it can be evaluated and started from (init_from), not "
                "resumed: give another run_dir"
            )
        self._check_identity(meta)
        check_counts(like.params, meta["parameters"])
        parts = {k: _load(path, k, part, meta, sealed) for k, part in _parts(like).items()}
        if not sealed:
            write_manifest(path)
        return Restored(_whole(parts), meta["step"], meta["progress"])

    def _check_identity(self, meta: Mapping[str, Any]) -> None:
        now = as_saved(meta["identity"], _json(dict(self.identity)), self.root.parent.parent)
        found = first_difference(meta["identity"], now)
        if found:
            key, old, new = found
            raise UserError(
                f"{key}: the checkpoint in {self.root} was made with {old!r}, now it is {new!r}; "
                "resume with what it was made with, or give another run_dir"
            )


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint, newest first."""
    if not root.is_dir():
        return []
    numbers = (number_of(p.name) for p in root.iterdir() if p.is_dir())
    return sorted((n for n in numbers if n is not None), reverse=True)


def read_meta(path: Path, sealed: bool = True) -> dict[str, Any]:
    """The JSON saved with a checkpoint: step, progress, identity, parameters, checksums.

    Args:
        path: the checkpoint.
        sealed: False for one that was not finished; it may still be whole.

    Raises:
        DamagedFileError: the checkpoint is damaged, or of another step than its directory says.
        UserError: it cannot be read.
    """
    with _reading(path, sealed):
        if sealed:
            check_manifest(path)
        meta = ocp.metadata(path.absolute(), checkpointable_name="params").custom_metadata
        if not isinstance(meta, dict):
            raise DamagedFileError("its metadata are missing")
        if meta["step"] != number_of(path.name):
            raise DamagedFileError(f"it is of step {meta['step']}; rename it to that")
    return meta


@contextmanager
def _reading(path: Path, sealed: bool = True) -> Iterator[None]:
    """Tells what goes wrong while a checkpoint is read from damage.

    Args:
        path: the checkpoint.
        sealed: whether its files were found to be those that were written: then Orbax cannot fail
            for damage.

    Raises:
        DamagedFileError: as raised inside; or anything else that an unsealed one brings about.
        UserError: it cannot be read, or not as asked.
    """
    try:
        with _quiet():
            yield
    except UserError:
        raise
    except Exception as error:
        if of_storage(error) and not isinstance(error, FileNotFoundError):
            line = in_one_line(error) or f"{said(error, 200)}; nothing is changed: try again"
            raise UserError(f"{path} cannot be read: {line}") from error
        if not sealed:
            raise DamagedFileError(f"it was not finished: {said(error, 200)}") from None
        if isinstance(error, ValueError | KeyError | TypeError | FileNotFoundError):
            raise UserError(
                f"{path} is whole, but does not fit what is to be restored ({said(error, 200)}): "
                "another version may have written it; go on with that one, or start another "
                "run from it (init_from)"
            ) from error
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """While inside, Orbax's own threads print no tracebacks: the error is raised here as well.

    After an error those that began inside are waited for, and neither what TensorStore's still tell
    the event loop, which Orbax has closed, nor what that loop never came to is said later.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers]
    thrown, unraisable = threading.excepthook, sys.unraisablehook
    running = set(threading.enumerate())
    for logger in loggers:
        logger.disabled = True
    threading.excepthook, sys.unraisablehook = _say_nothing, _say_nothing
    try:
        yield
    except Exception:
        end = time.monotonic() + _THREADS_END
        for thread in set(threading.enumerate()) - running:
            thread.join(max(0.0, end - time.monotonic()))
        _end_what_never_began()
        if not isinstance(unraisable, _AllButLate):
            unraisable = _AllButLate(unraisable)
        raise
    finally:
        threading.excepthook, sys.unraisablehook = thrown, unraisable
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _end_what_never_began() -> None:
    """Ends the coroutines that wait for their first step in an event loop that is closed.

    Orbax closes its loop at the first error. Whenever such a coroutine is then forgotten, at any
    later time, Python warns that it "was never awaited".
    """
    for task in gc.get_objects():
        if issubclass(type(task), asyncio.Task) and task.get_loop().is_closed():
            waits = task.get_coro()  # what is not a coroutine is forgotten without a word
            if (
                inspect.iscoroutine(waits)
                and inspect.getcoroutinestate(waits) == inspect.CORO_CREATED
            ):
                waits.close()


@dataclass(frozen=True)
class _AllButLate:
    """Says what `said` does, but for what is told to an event loop that is closed."""

    said: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.said(unraisable)


def _say_nothing(_: Any) -> None:
    pass


def _directories(root: Path, names: re.Pattern[str]) -> list[Path]:
    """The directories in a place whose whole names match."""
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if names.fullmatch(p.name) and p.is_dir()]


def _free_name(path: Path) -> Path:
    """Where a damaged checkpoint is set aside, until the next one is saved."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir():
        shutil.rmtree(aside)
    while aside.exists():
        aside = aside.with_name(f"{aside.name}.damaged")
    return aside


def load_params(
    root: Path,
    like: PyTree,
    which: Literal["last", "best"] = "last",
    part: str | None = None,
    only: Sequence[str] = (),
) -> tuple[PyTree, dict[str, Any]]:
    """The parameters to evaluate (the averaged ones where the stage averages), laid out as
    `like`, and the checkpoint's JSON.

    Args:
        root: checkpoints of a stage.
        like: arrays or shapes with shardings.
        which: `best` is the last one where the stage kept no score.
        part: first level of the tree to keep; `like` has it alone, the others are dropped.
        only: with a part, its components to keep, by path (`compressor`, `readers/qwen`); the
            others are dropped. Empty: all.

    A damaged checkpoint is named, and the one before it taken.

    Raises:
        UserError: no checkpoint, or it holds other parameters than `like`.
    """
    best = None if which == "last" else best_step(root)
    bad: list[Path] = []
    for step in [*([] if best is None else [best]), *steps(root)]:
        path = root / str(step)
        try:
            if not has_manifest(path):
                continue  # not finished; training will see to it
            meta = read_meta(path)
            name = "ema" if "ema" in meta["checksums"] else "params"
            if part is None:
                check_counts(like, meta["parameters"])
                return _load(path, name, like, meta), meta
            saved = _as_saved(path, name, like)
            old = old_names(meta["parameters"])
            wanted = chosen_parts(like[part], only) if only else dict(components(like[part]))
            own = {("_".join(p),) if old else p: tree for p, tree in wanted.items()}
            if only:
                own = dict(components(saved[part])) | own
            whole = saved | {part: from_paths(own)}
            check_counts(whole, meta["parameters"])
            loaded = _load(path, name, whole, meta)[part]
            parts = dict(components(nested(loaded, wanted) if old else loaded))
            return {part: from_paths({p: parts[p] for p in wanted})}, meta
        except DamagedFileError as damage:
            print(f"checkpoint {path} is damaged ({damage}); taking another")
            bad.append(path)
    if bad:
        raise UserError(
            f"{bad[0]} is damaged, and there is no whole checkpoint beside it: put back a copy of "
            f"it, or delete {root} and run the command that trains it again"
        )
    raise UserError(f"{root}: no checkpoint; run the stage that trains it first")


def best_step(root: Path) -> int | None:
    """The step of the best checkpoint; None where the stage kept no score."""
    for step in steps(root):
        try:
            best = read_meta(root / str(step))["progress"].get("best")
        except DamagedFileError:  # or not finished: `load_params` says so
            continue
        return best and int(best["step"])
    return None


def component_counts(params: PyTree) -> dict[str, int]:
    """Parameters per component: `bridge/compressor`, `bridge/readers/qwen/lora`, `heads/gist`."""
    found: dict[str, int] = {}
    for name, tree in params.items():
        parts: Any = components(tree) if isinstance(tree, Mapping) else [((), tree)]
        for path, part in parts:
            if leaves := jax.tree.leaves(part):
                found["/".join((name, *path))] = sum(x.size for x in leaves)
    return found


def old_names(parameters: Mapping[str, int]) -> bool:
    """Whether a bridge was saved with linen's names for its readers' parameters."""
    return any(name.startswith("bridge/readers_") for name in parameters)


def check_counts(loaded: PyTree, trained: Mapping[str, int]) -> None:
    """What is loaded must equal what was trained, component by component.

    See faults 6 and 26 of docs/faults.md.

    Raises:
        UserError: names the component and both counts.
    """
    check_same(component_counts(loaded), trained)


def check_same(here: Mapping[str, int], trained: Mapping[str, int]) -> None:
    """The same of counts by component."""
    for name in sorted(here.keys() | trained.keys()):
        if here.get(name) != trained.get(name):
            raise UserError(
                f"component {name}: {trained.get(name, 0)} parameters were trained, "
                f"{here.get(name, 0)} would be loaded; the bridge and the receivers have to be "
                "those of the config that trained it"
            )


def checksum(tree: PyTree) -> int:
    """CRC-32 of all leaves' bytes, in tree order."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(fetch(leaf)).tobytes(), crc)
    return crc


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """(path, old, new) of the first place where two JSON trees differ, `FREE` keys aside.

    A stage's `steps` may be more than before. An option that the old tree does not know is no
    difference where the new one has switched it off, or does what was done before it.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted((old.keys() | new.keys()) - FREE):
            if key not in old and as_before(key, new[key]):
                continue
            where = f"{path}.{key}" if path else key
            if raised(where, old.get(key), new.get(key)):
                continue
            if found := first_difference(old.get(key), new.get(key), where):
                return found
        return None
    return None if old == new else (path, old, new)


def _json(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(k): _json(v) for k, v in tree.items()}
    return [_json(v) for v in tree] if isinstance(tree, list | tuple) else tree


def _parts(state: TrainState) -> dict[str, PyTree]:
    """The separately readable parts of a state; typed keys become their data."""
    rng = jax.random.key_data(state.rng)
    parts = {"params": state.params, "rest": [state.opt_state, state.step, rng]}
    return parts if state.ema is None else parts | {"ema": state.ema}


def _whole(parts: Mapping[str, PyTree]) -> TrainState:
    opt_state, step, rng = parts["rest"]
    key = jax.random.wrap_key_data(rng)
    return TrainState(parts["params"], opt_state, step, key, parts.get("ema"))


def _load(
    path: Path, name: str, like: PyTree, meta: Mapping[str, Any], sealed: bool = True
) -> PyTree:
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    with _reading(path, sealed):
        tree = ocp.load(path.absolute(), shapes, checkpointable_name=name)
        if checksum(tree) != meta["checksums"][name]:
            raise DamagedFileError(f"{name}: checksum differs")
    return tree


def _as_saved(path: Path, name: str, like: PyTree) -> dict[str, PyTree]:
    """Shapes of all that was saved, to be laid out as the first leaf of `like`."""
    with _reading(path):
        saved = ocp.metadata(path.absolute(), checkpointable_name=name).metadata
    where = jax.tree.leaves(like)[0].sharding
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), saved)


def _remove(path: Path) -> None:
    """Delete a directory so that a kill half-way leaves nothing that looks like a checkpoint."""
    gone = path.with_name(f"{path.name}.deleted")
    path.rename(gone)
    shutil.rmtree(gone)
