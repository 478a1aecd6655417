"""The file of a `calibrate` stage: moments of every frozen model, finished or in progress.

    <run_dir>/calibration/<stage>.npz       finished: `<part>/mean`, `/std`, `/tokens`
    <run_dir>/calibration/<stage>.part.npz  so far: `<part>/0..` are the moments of `done` rows

A part is `source` or a receiver. For a source with a PCA the first file also holds what was fitted,
`source/directions`, `/variances`, `/kept` (`lw_jax.sources.pca.fit`), and the second the sums that
it is fitted to. For a compressor that is fitted, the first holds `compressor/fit/kernel`, `/bias`,
`/explained`, `/tokens`, and the second the sums of `lw_jax.compressors.least_squares`. Both files
say what they were measured with, and are refused under anything else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lw_jax.errors import UserError
from lw_jax.models.fingerprint import as_saved
from lw_jax.train.checkpoint import first_difference
from lw_jax.utils.files import AGAIN, damaged, read_npz, write_npz

ADVICE = f"{AGAIN}: it is measured anew"
"""What to do about a file that is damaged."""

Found = dict[str, tuple[np.ndarray, ...]]
"""By part: count [], mean [n, D] and sum of squared deviations [n, D], float64; for the source of a
PCA then the sum of their products [n, D, D].
"""


def path_of(run_dir: Path, name: str) -> Path:
    """Where a calibrate stage's statistics are."""
    return run_dir / "calibration" / f"{name}.npz"


def save_part(path: Path, found: Found, done: int, identity: Mapping[str, Any]) -> None:
    """Writes what was gathered so far.

    Args:
        path: the file.
        found: the moments.
        done: number of rows, from the first on, that they were gathered from.
        identity: what they were measured with.
    """
    arrays = {f"{key}/{i}": x for key, value in found.items() for i, x in enumerate(value)}
    _write(_part(path), arrays | {"done": np.array(done)}, identity)


def load_part(path: Path, identity: Mapping[str, Any]) -> tuple[Found, int]:
    """What was gathered so far, and from how many rows; without a file nothing, and 0.

    Raises:
        UserError: it was gathered with other models or another config.
    """
    if not _part(path).is_file():
        return {}, 0
    arrays = _read(_part(path), identity)
    try:
        done = int(arrays.pop("done"))
        held = Counter(key.rpartition("/")[0] for key in arrays)
        return {k: tuple(arrays[f"{k}/{i}"] for i in range(n)) for k, n in held.items()}, done
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(_part(path), error) from None


def save(
    path: Path,
    found: Found,
    identity: Mapping[str, Any],
    fitted: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the finished statistics, and removes what was gathered so far.

    Args:
        path: the file.
        found: the moments.
        identity: what they were measured with.
        fitted: what was fitted to them, by its key in the file; None: nothing.
    """
    arrays = dict(fitted or {})
    for key, (count, mean, squares, *_) in found.items():
        arrays |= {f"{key}/mean": mean, f"{key}/std": np.sqrt(squares / count)}
        arrays[f"{key}/tokens"] = count
    _write(path, arrays, identity)
    _part(path).unlink(missing_ok=True)


def load(path: Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Finished statistics, by `<part>/mean`, `<part>/std`, and what was fitted to them.

    Raises:
        UserError: there are none, or they belong to other models or another config.
    """
    if not path.is_file():
        raise UserError(f"{path}: no statistics; run the calibrate stage that measures them first")
    return _read(path, identity)


def load_any(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Finished statistics, and what they were measured with.

    Raises:
        UserError: there are none, or they are damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no statistics; run the calibrate stage that measures them first")
    return _read_any(path)


def check(path: Path) -> None:
    """Checks that finished statistics are there and whole.

    Raises:
        UserError: they are damaged.
        FileNotFoundError: there are none.
    """
    if "identity" not in read_npz(path, ADVICE):
        raise damaged(path, "it has no identity", ADVICE)


def _part(path: Path) -> Path:
    return path.with_suffix(".part.npz")


def _write(path: Path, arrays: Mapping[str, np.ndarray], identity: Mapping[str, Any]) -> None:
    write_npz(path, {"identity": np.array(json.dumps(identity)), **arrays})


def _read_any(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = read_npz(path, ADVICE)
    try:
        identity = dict(json.loads(str(arrays.pop("identity"))))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, error, ADVICE) from None
    for key, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise damaged(path, f"{key} is not all finite numbers", ADVICE)
    return arrays, identity


@contextmanager
def used(path: Path) -> Iterator[None]:
    """While inside, statistics are put to use: where one is missing, or of another shape, the file
    is damaged.

    Raises:
        DamagedFileError: instead of what went wrong.
    """
    try:
        yield
    except KeyError as error:
        raise damaged(path, f"it has no {error}", ADVICE) from None
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(path, error, ADVICE) from None


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays, known = _read_any(path)
    now = as_saved(known, json.loads(json.dumps(identity)), path.parent.parent)
    if difference := first_difference(known, now):
        key, old, new = difference
        raise UserError(
            f"{path}: these statistics were measured with {key} {old!r}, now it is {new!r}; "
            "use what they were measured with, or give another run_dir"
        )
    return arrays
