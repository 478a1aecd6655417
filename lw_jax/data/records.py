"""Records of local files (.jsonl, .json, .csv, .tsv, .parquet) or of a data set of the hub.

What is wrong with one record is said in its place, by file and line, and the others are read: a
line that is no JSON, a number of 5,000 digits, a hundred thousand brackets, half a character.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lw_jax.data import files
from lw_jax.data.files import SUFFIXES, Names
from lw_jax.errors import UserError, said

LONGEST_TEXT = 1_000_000
"""Characters of a text; no model reads a longer one."""


class BadRowError(ValueError):
    """A record that is not a row of the expected form; the message says why."""


class Cell(str):
    """A field of a table (.csv, .tsv), where a number is text as well."""


class Unreadable:
    """Stands for a value that JSON has and that cannot be used; it is shown as what it is."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return self.what


def read(names: Names, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """(where, record) of each record; what cannot be read gives a BadRowError in its place.

    Args:
        names: local files, patterns, directories, or hub names (then `subset` and `split` choose
            from it). A file that several of them mean is read once.
        subset: subset of a hub data set.
        split: split of a hub data set.

    Raises:
        UserError: missing or unreadable file; unknown data set, subset or split; hub out of reach.
    """
    named = files.several(names)
    local = [path for name in named if files.is_file(name) for path in files.paths(name)]
    for path in files.distinct(local):
        yield from _file(path)
    for name in dict.fromkeys(named):
        if not files.is_file(name):
            yield from _hub(name, subset, split)


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    kind = files.kind_of(path)
    if kind in (".jsonl", ".ndjson"):
        yield from _lines(path)
    elif kind == ".json":
        yield from _document(path)
    elif kind in (".csv", ".tsv"):
        yield from _table(path, "\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        yield from _parquet(path)
    else:
        raise UserError(
            f"{path}: unknown format; expected one of {', '.join(SUFFIXES)} (text also as .gz)"
        )


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in files.lines(path):
        where = f"{path}:{number}"
        if line is None:
            yield where, BadRowError(f"a line of more than {files.LONGEST_LINE:,} bytes")
        elif line.strip():
            try:
                yield where, _value(line.decode())
            except UnicodeDecodeError as error:
                yield where, BadRowError(f"not UTF-8 ({error.reason} at byte {error.start})")
            except json.JSONDecodeError as error:
                yield where, BadRowError(f"not JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                yield where, BadRowError("nested too deep to be read")


def _value(text: str) -> Any:
    """A JSON value; what of it cannot be used is `Unreadable`.

    Raises:
        json.JSONDecodeError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of more digits than Python reads
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return Unreadable(f"an object with the key {twice[:40]!r} twice")


_JSON = json.JSONDecoder(object_pairs_hook=_object)
"""`json.loads` would make one for every line."""


def _integer(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:
        return Unreadable(f"a number of {len(digits):,} digits")


def _document(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a JSON list, at the top or under "data"; or of lines, if it has those."""
    try:
        text = files.content(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    try:
        document = _value(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one value after another: JSON lines under this name
            yield from _lines(path)
            return
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    except RecursionError:
        yield from _elements(path, text)
        return
    key = ""
    if isinstance(document, Mapping) and isinstance(document.get("data"), list):
        document, key = document["data"], "data"
    if not isinstance(document, list):
        raise UserError(f'{path}: expected a list of rows, or {{"data": [...]}}')
    for number, record in enumerate(document):
        yield f"{path}: {key}[{number}]", record


_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _elements(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The records of a document that is nested too deep somewhere, each read by itself."""
    depth, base, begin, number, key, named = 0, 0, 0, 0, "", False
    for mark in _MARK.finditer(text):
        one = mark[0]
        closes = one in "]}"
        if base and depth == base and (one == "," or closes):
            if text[begin : mark.start()].strip():
                where = f"{path}: {key}[{number}]"
                try:
                    yield where, _value(text[begin : mark.start()])
                except (json.JSONDecodeError, RecursionError) as error:
                    deep = isinstance(error, RecursionError)
                    yield where, BadRowError("nested too deep to be read" if deep else "not JSON")
                number += 1
            begin = mark.end()
            if closes:
                return
        if one in "[{":
            depth += 1
            if one == "[" and not base and (depth == 1 or (depth == 2 and named)):
                base, begin, key = depth, mark.end(), "data" if named else ""
        elif closes:
            depth -= 1
        elif not base:
            named = depth == 1 and one == '"data"'
    if not base:
        raise UserError(f'{path}: nested too deep; expected a list of rows, or {{"data": [...]}}')


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    """Rows of separated text under a line of field names, each with the line it begins at."""
    text = files.content(path).decode("utf-8", "surrogateescape")
    lines = list(io.StringIO(text, newline=""))
    csv.field_size_limit(2**31 - 1)
    fields: list[str] | None = None
    before, reader = 0, csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        at = before + reader.line_num + 1
        where = f"{path}:{at}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if fields is None:
                raise UserError(f"{where}: not CSV ({error})") from None
            yield where, BadRowError(f"not CSV ({error})")
            if str(error) == "unexpected end of data" and at < len(lines):
                # A quote that is never closed took all the lines after it: they are read again.
                before, reader = at, csv.reader(lines[at:], delimiter=delimiter, strict=True)
            continue
        if not row:
            continue
        if fields is None:
            fields = _fields(where, row)
        elif len(row) != len(fields):
            yield where, BadRowError(f"expected {len(fields)} fields, as in the first line")
        elif _is_text("".join(row)):
            yield where, dict(zip(fields, map(Cell, row), strict=True))
        else:
            yield where, BadRowError("not UTF-8")


def _fields(where: str, row: list[str]) -> list[str]:
    """The names of the columns.

    Raises:
        UserError: one stands twice, or they are no text.
    """
    twice = next((name for name in row if name and row.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice[:40]!r} stands twice; name each once")
    if not _is_text("".join(row)):
        raise UserError(f"{where}: not UTF-8")
    return row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = list(file.iter_batches())
            _fields(str(path), list(file.schema_arrow.names))
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file ({said(error)})") from None
    number = 0
    for batch in batches:
        for record in _rows_of(batch):
            yield f"{path}: row {number}", record
            number += 1


def _rows_of(batch: Any) -> Iterator[Any]:
    """The rows of a part of a parquet file; one by one if they cannot be read at once."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError, OSError):  # before the first row: a list is made whole
        pass
    for at in range(batch.num_rows):
        try:
            yield batch.slice(at, 1).to_pylist()[0]
        except (ValueError, OverflowError, OSError) as error:
            yield BadRowError(said(error))


def _hub(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report its retries one by one
    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # datasets and the hub's client raise a dozen unrelated types
        raise UserError(
            f"data set {name!r} (subset {subset!r}, split {split!r}): {said(error)}; give a "
            f"local file ({', '.join(SUFFIXES)}) or another hub name, subset or split"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    number = 0
    try:
        for number, record in enumerate(table):
            yield f"{name}[{split}]: row {number}", record
    except (ImportError, OSError, ValueError, ArithmeticError) as error:
        # a column of pictures without the package that reads them, a damaged cache, ...
        raise UserError(
            f"data set {name!r} (split {split!r}): row {number} or the next cannot be read "
            f"({said(error)})"
        ) from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shown(value: Any) -> str:
    """A value for a message: short, in one line, however large or deep it is."""
    return _SHORT.repr(value)[:40]


def found(value: Any) -> str:
    """What a field holds, for a message."""
    return "nothing" if value is None else shown(value)


def text(record: Mapping[str, Any], field: str, numbers: bool = False) -> str:
    """A field's text, with white space collapsed.

    Args:
        record: the record.
        field: the field.
        numbers: whether a number is taken as the text of it.

    Raises:
        BadRowError: there is no text, or none that a tokenizer can be given.
    """
    value = record.get(field)
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRowError(f"{field}: expected text or a finite number, got {value}")
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{field}: expected text, got {found(value)}")
    return sound(value, field)


def sound(value: str, field: str) -> str:
    """A text with white space collapsed.

    Raises:
        BadRowError: it is too long, holds a NUL, or half of a surrogate pair.
    """
    if len(value) > LONGEST_TEXT:
        raise BadRowError(
            f"{field}: {len(value):,} characters; a text has at most {LONGEST_TEXT:,}"
        )
    if "\0" in value:
        raise BadRowError(f"{field}: a NUL at character {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{field}: half a surrogate pair, {value[error.start]!r}, at character {error.start}"
        ) from None
    return " ".join(value.split())


def _is_text(value: str) -> bool:
    """Whether a text that was decoded byte by byte was UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
