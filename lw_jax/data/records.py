"""Records of a local file (.jsonl, .json, .csv, .parquet) or of a data set of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


class BadRowError(ValueError):
    """A record that is not a row of the expected form; the message says why."""


def is_file(name: str) -> bool:
    """Whether a data set's name means a local file: it has such an ending, or exists."""
    return name.endswith(SUFFIXES) or Path(name).exists()


def read(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """(where, record) of each record; a line that is not JSON gives a BadRowError in its place.

    Args:
        name: local file, or hub name (then `subset` and `split` choose from it).
        subset: subset of a hub data set.
        split: split of a hub data set.

    Raises:
        UserError: missing or unreadable file; unknown data set, subset or split; hub out of reach.
    """
    if not is_file(name):
        yield from _hub(name, subset, split)
        return
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file; give a {', '.join(SUFFIXES)} file or a hub name")
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _lines(path)
    elif path.suffix == ".json":
        yield from _document(path)
    elif path.suffix == ".csv":
        yield from _csv(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise UserError(f"{name}: unknown format; expected one of {', '.join(SUFFIXES)}")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line.decode())
            except UnicodeDecodeError as error:
                yield where, BadRowError(f"not UTF-8 ({error.reason} at byte {error.start})")
            except json.JSONDecodeError as error:
                yield where, BadRowError(f"not JSON ({error.msg} at column {error.colno})")


def _document(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a JSON list, at the top or under "data"."""
    try:
        document = json.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    key = ""
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document, key = document["data"], "data"
    if not isinstance(document, list):
        raise UserError(f'{path}: expected a list of rows, or {{"data": [...]}}')
    for number, record in enumerate(document):
        yield f"{path}: {key}[{number}]", record


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of comma-separated text under a line of field names, each with the line it ends at."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            for record in lines:
                where = f"{path}:{lines.line_num}"
                if None in record or None in record.values():
                    fields = len(lines.fieldnames or ())
                    yield where, BadRowError(f"expected {fields} fields, as in the first line")
                else:
                    yield where, record
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num + 1}: not CSV ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = [batch.to_pylist() for batch in file.iter_batches()]
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({_one_line(error)})") from None
    for number, record in enumerate(record for batch in batches for record in batch):
        yield f"{path}: row {number}", record


def _hub(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report its retries one by one
    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # datasets and the hub's client raise a dozen unrelated types
        raise UserError(
            f"data set {name!r} (subset {subset!r}, split {split!r}): {_one_line(error)}; give a "
            f"local file ({', '.join(SUFFIXES)}) or another hub name, subset or split"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    for number, record in enumerate(table):
        yield f"{name}[{split}]: row {number}", record


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def text(record: Mapping[str, Any], field: str) -> str:
    """A field's text, with white space collapsed.

    Raises:
        BadRowError: there is no text.
    """
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value is None else repr(value)[:40]
        raise BadRowError(f"{field}: expected text, got {got}")
    return " ".join(value.split())
