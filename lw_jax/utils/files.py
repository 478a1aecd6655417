"""Small files: written whole, and read without trust in what they hold. The manifest of a
directory: the digest of every file in it, so that damage is found before anything is read.

A manifest is written last: a directory without one is not finished.

Of several processes that run a config together, the first alone writes (`lw_jax.utils.hosts`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from lw_jax.errors import UserError, short
from lw_jax.utils import hosts

MANIFEST = "files.json"
AGAIN = "delete it and run the same command again"
"""What to do about most damaged files."""

DIAGNOSTICS_LINE: Mapping[str, type] = MappingProxyType({"stage": str, "step": int, "kind": str})
"""What every line of a run's `diagnostics.jsonl` has."""

NUMBER = (int, float)
"""The form of a number (`fits`)."""

_DIGITS = 300
"""Digits of the longest whole number that a JSON file may hold: floats reach to 308."""

_Json = TypeVar("_Json", dict[str, Any], list[Any])


class DamagedFileError(UserError):
    """A file does not hold what was written to it."""


def damaged(path: Path, reason: object, advice: str = AGAIN) -> DamagedFileError:
    """The error of a damaged file.

    Args:
        path: the file.
        reason: what is wrong with it.
        advice: what to do about it.
    """
    said = " ".join(str(reason).split())
    return DamagedFileError(f"{path} is damaged ({short(said, 200)}); {advice}")


def read_json(path: Path, kind: type[_Json], advice: str = AGAIN) -> _Json:
    """The value in a JSON file.

    Args:
        path: the file.
        kind: `dict` or `list`, whichever it must be.
        advice: what to do about a damaged file.

    Raises:
        DamagedFileError: it is cut, garbled, or holds another kind of value.
        OSError: it cannot be read, which says nothing about what is in it.
    """
    content = path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error if content else "it is empty", advice) from None
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        got = short(repr(value), 40)
        raise damaged(path, f"expected {expected}, not {got}", advice)
    return value


def _integer(digits: str) -> int:
    """A whole number of a JSON file; one that no float holds is nobody's figure."""
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


@contextmanager
def shown(path: Path, advice: str = AGAIN) -> Iterator[None]:
    """While inside, figures of a JSON file are shown: where one is missing, or of another type
    than is written there, the file is damaged.

    Args:
        path: the file.
        advice: what to do about it.

    Raises:
        DamagedFileError: instead of what went wrong.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # what is raised depends on which figure is of which type
        raise damaged(path, f"{type(error).__name__}: {error}", advice) from error


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value read from a file is of the form that is wanted.

    Args:
        value: as JSON gives it.
        wanted: a type, or several in a tuple (NUMBER: a finite number); `[form]`: a list of such
            values; `{key: form}`: an object that has these keys, and others; `{...: form}`: an
            object of such values under any keys.
    """
    if isinstance(wanted, list):
        return isinstance(value, list) and all(fits(one, wanted[0]) for one in value)
    if isinstance(wanted, Mapping):
        if not isinstance(value, dict):
            return False
        if ... in wanted:
            return all(fits(one, wanted[...]) for one in value.values())
        return all(key in value and fits(value[key], form) for key, form in wanted.items())
    if isinstance(value, bool):
        return bool in (wanted if isinstance(wanted, tuple) else (wanted,))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, wanted)


def read_lines(
    path: Path, wanted: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[dict[str, Any]], int]:
    """The objects in a JSON-lines file, and how many lines hold none; without a file nothing.

    A line may be cut short, when a process was killed while it wrote.

    Args:
        path: the file.
        wanted: the form that an object must have (`fits`).
    """
    if not path.is_file():
        return [], 0
    found, bad = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        value = read_line(line, wanted)
        if value is None:
            bad += 1
        else:
            found.append(value)
    return found, bad


def read_line(
    line: bytes, wanted: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any] | None:
    """The object in a line of JSON; None: it holds none of this form (`fits`)."""
    try:
        value = json.loads(line.decode("utf-8"), parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and fits(value, wanted) else None


def read_npz(path: Path, advice: str = AGAIN) -> dict[str, np.ndarray]:
    """The arrays in a NumPy file.

    Args:
        path: the file.
        advice: what to do about a damaged file.

    Raises:
        DamagedFileError: it is cut or garbled.
        OSError: it cannot be read, which says nothing about what is in it.
    """
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            return dict(saved)
    except Exception as error:  # what NumPy and zipfile raise depends on which byte is wrong
        reason: object = "it is no NumPy file" if "pickle" in str(error) else error
        raise damaged(path, reason if content else "it is empty", advice) from None


def number_of(name: str) -> int | None:
    """The number that a file's name is, as Python writes it; None: it is none."""
    plain = name.isascii() and name.isdecimal() and name == str(int(name))
    return int(name) if plain else None


def write_manifest(directory: Path) -> None:
    """Writes the manifest of a finished directory."""
    if hosts.first():
        write_text(directory / MANIFEST, json.dumps(_digests(directory), indent=1))


def has_manifest(directory: Path) -> bool:
    """Whether the directory was finished."""
    return (directory / MANIFEST).is_file()


def check_manifest(directory: Path) -> None:
    """Checks that the directory holds what its manifest says.

    Raises:
        DamagedFileError: it is not finished, a file is missing or has changed, or the manifest
            itself is damaged; says which.
        OSError: a file cannot be read.
    """
    if not has_manifest(directory):
        raise DamagedFileError(f"{MANIFEST} is missing")
    try:
        written = read_json(directory / MANIFEST, dict)
    except DamagedFileError:
        raise DamagedFileError(f"{MANIFEST} has changed") from None
    if not written:
        raise DamagedFileError(f"{MANIFEST} is empty")
    here = _digests(directory)
    for name, digest in written.items():
        if name not in here:
            raise DamagedFileError(f"{name} is missing")
        if here[name] != digest:
            raise DamagedFileError(f"{name} has changed")


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (MANIFEST, f"{MANIFEST}.part"):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Has whoever may read other new files read this one: what safetensors writes inside is for its
    owner alone, and a bridge or a model is to be given away.

    Args:
        path: a file that is written inside.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    yield
    path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a kill leaves the old one or the new one. Halves of surrogate pairs,
    as in a name that is no UTF-8, are written as escapes, which JSON reads back."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file at once: a kill leaves the old one or the new one, and so does a full disk.

    A link stays one, to the new file; a pipe or a device is written to, and stays what it is.

    Raises:
        OSError: it cannot be written.
    """
    if not hosts.first():
        return
    if path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe stays one
        with path.open("wb") as file:
            file.write(content)
        return
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a NumPy file completely or not at all."""
    if not hosts.first():
        return
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, held.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file completely or not at all; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Writes a JSON-lines file completely or not at all."""
    write_text(path, "".join(json.dumps(_finite(x), ensure_ascii=False) + "\n" for x in lines))


def append_line(path: Path, content: Any) -> None:
    """Appends one JSON line, in one write: whole, and after the end of the line before, which a
    kill or a full disk may have cut.

    Raises:
        OSError: it cannot be written; then the file is as it was.
    """
    if not hosts.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(content), ensure_ascii=False) + "\n"
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        begin = b"" if size == 0 or _ends_a_line(path) else b"\n"
        left = begin + line.encode("utf-8", "backslashreplace")
        try:
            while left:  # on a disk that is nearly full the first writes a part
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def _ends_a_line(path: Path) -> bool:
    """Whether a file's last byte ends a line."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {str(k): _finite(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(v) for v in content]
    return content
