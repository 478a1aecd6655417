"""Local files that rows are read from: by name, pattern or directory; gzip; byte order marks."""

from __future__ import annotations

import glob
import gzip
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO, cast

from annotated_types import MaxLen

from lw_jax.errors import UserError
from lw_jax.utils.bounds import FEW, Location

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files with rows; all but the last may be followed by `.gz`."""
LONGEST_LINE = 2**26
"""Bytes of a line; a longer one is no row."""
BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, which editors and spreadsheets put first."""

Names = Annotated[str, MaxLen(4096)] | Annotated[tuple[Location, ...], FEW]
"""A file, a pattern (`data/*.jsonl`), a directory or a data set of the hub, or several of them."""


State = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of files."""
SMALL = 2**25
"""Bytes of files up to which their rows are held in memory."""
SETTLED = 2.0
"""Seconds for which a file must not have changed: within the resolution of its time it might change
once more."""


def several(names: Names | None) -> tuple[str, ...]:
    """The names one by one."""
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def is_file(name: str) -> bool:
    """Whether a name means local files: by its ending, as a pattern or a path, or it exists."""
    local = name.startswith((".", "/", "~")) or name.endswith(".gz") or glob.has_magic(name)
    return local or name.endswith(SUFFIXES) or os.path.exists(name)


def paths(name: str) -> list[Path]:
    """The files that a name means, in alphabetical order; of a directory those with known endings.

    Raises:
        UserError: there is none.
    """
    try:
        return _paths(name, os.path.expanduser(name))
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None


def _paths(name: str, expanded: str) -> list[Path]:
    if os.path.isfile(expanded):
        return [Path(expanded)]
    if os.path.isdir(expanded):
        files = sorted(p for p in Path(expanded).iterdir() if not p.name.startswith("."))
        known = [p for p in files if p.is_file() and kind_of(p) is not None]
        if not known:
            raise UserError(f"{name}: no {', '.join(SUFFIXES)} file directly in this directory")
        return known
    if glob.has_magic(expanded):
        found = [Path(p) for p in sorted(glob.glob(expanded, recursive=True))]
        files = [p for p in found if p.is_file()]
        if not files:
            raise UserError(f"{name}: no file matches this pattern")
        return files
    if os.path.exists(expanded):
        raise UserError(f"{name}: a pipe or a device; give a file, which is read more than once")
    raise UserError(f"{name}: no such file; give a {', '.join(SUFFIXES)} file or a hub name")


def resolved(names: Names | None) -> frozenset[str]:
    """What names mean, comparable: real paths of local files, names of data sets of the hub.

    A file that is missing counts under its own path.
    """
    found: set[str] = set()
    for name in several(names):
        if not is_file(name):
            found.add(name)
            continue
        try:
            found |= {os.path.realpath(path) for path in paths(name)}
        except (UserError, OSError):
            found.add(os.path.realpath(os.path.expanduser(name)))
    return frozenset(found)


def state(names: Names) -> State | None:
    """What changes when files do; None: not all are files, or their rows are not to be held."""
    if not all(map(is_file, several(names))):
        return None
    with suppress(UserError, OSError):
        seen = [(path.resolve(), path.stat()) for name in several(names) for path in paths(name)]
        quiet = time.time_ns() - max(stat.st_mtime_ns for _, stat in seen) > SETTLED * 1e9
        if quiet and sum(stat.st_size for _, stat in seen) <= SMALL:
            return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in seen)
    return None


def kind_of(path: Path) -> str | None:
    """The ending that says how to read a file, without `.gz`; None: it is no file of rows."""
    name = path.name.lower()
    zipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (zipped and suffix == ".parquet"):
        return None
    return suffix


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1 on, line) of a text file; None for a line longer than `LONGEST_LINE`.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 as a whole.
    """
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) <= LONGEST_LINE:
                yield number, line.removeprefix(BOM)
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield number, None


def content(path: Path) -> bytes:
    """A text file whole, without its byte order mark.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 as a whole.
    """
    with _opened(path) as file:
        return file.read().removeprefix(BOM)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, unpacked if it is packed, whatever its name; what goes wrong inside is one line."""
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain
            start = file.read(4)
            file.seek(0)
            _check_encoding(path, start)
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip ({error}); pack it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_encoding(path: Path, start: bytes) -> None:
    """Raises UserError if the first four bytes are UTF-16's or UTF-32's."""
    marked = start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    zeros = [byte == 0 for byte in start]
    if marked or zeros in ([False, True] * 2, [True, False] * 2):
        raise UserError(
            f"{path}: UTF-16 or UTF-32 text; expected UTF-8, as `iconv -f UTF-16 -t UTF-8` makes it"
        )


def distinct(found: Iterable[Path]) -> Iterator[Path]:
    """Files, each once, even if several names mean it."""
    seen: set[str] = set()
    for path in found:
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield path
