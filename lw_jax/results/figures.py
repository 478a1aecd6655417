"""Figures in prose, taken from records: `{facts_seed42.latent.em:.3f}`.

Outside code, braces in a page's text hold a figure and its format (Python's):

    {NAME.METHOD.METRIC:.3f}         of a method; also .low and .high of its interval (over several
                                     seeds: `lw_jax.results.row.combine`; two have none)
    {NAME.METHOD.slots.rms_ratio}    of the slots of a method
    {NAME.training.STAGE.steps}      of a train stage; .loss.200 is the loss logged at step 200
    {NAME.evaluation.data.rows}      anything else of the evaluation
    {NAME.config.seed}               of the config, if the key is not at its default
    {NAME.COLUMN}                    the cell of `lw_jax.results.columns`, as a table writes it
    {A - B:.2f}  {A / B:.0%}         of two of them
    {no record: 0.088 of all}        what no record holds: the words, and "(no record)" after them

NAME is a record, or a row in the page's `names`; over several seeds a figure is their mean. METHOD
may be `method`, the one that the row is about. So no figure in prose can differ from its record,
none is out of date when a record is replaced, and what is not of a record is called so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lw_jax.errors import UserError
from lw_jax.results.columns import COLUMNS
from lw_jax.results.row import Row, Seed, read_row

_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_FIGURE = re.compile(r"\{([^{}]*)\}")
_NO_RECORD = re.compile(r"no record:\s*(.*\S)\s*", re.DOTALL)
_FIELD = re.compile(r"\s*([\w.]+)\s*(?:([-/])\s*([\w.]+)\s*)?(?::(.*))?", re.DOTALL)


def fill(
    text: str, names: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], where: str
) -> str:
    """The text with its figures.

    Args:
        text: the text.
        names: rows by name.
        records: the records by name.
        where: name of the text, for error messages.

    Raises:
        UserError: braces that hold no figure, or a figure that no record has.
    """

    def figure(found: re.Match[str]) -> str:
        if without := _NO_RECORD.fullmatch(found[1]):
            return f"{without[1]} (no record)"
        try:
            return _figure(found[1], names, records)
        except UserError as error:
            raise UserError(f"{where}: {{{found[1]}}}: {error}") from None

    parts = _CODE.split(text)
    parts[::2] = [_FIGURE.sub(figure, part) for part in parts[::2]]
    return "".join(parts)


def _figure(field: str, names: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> str:
    asked = _FIELD.fullmatch(field)
    if asked is None:
        raise UserError("no figure; write NAME.METHOD.METRIC:.3f")
    first, sign, second, form = asked.groups()
    row, path = _row(first, names, records)
    if len(path) == 1 and sign is None and form is None:
        if path[0] not in COLUMNS:
            raise UserError(f"unknown column {path[0]!r}; one of {', '.join(COLUMNS)}")
        return COLUMNS[path[0]].text(row)
    value = _value(row, path)
    if sign is not None:
        other = _value(*_row(second, names, records))
        if sign == "/" and other == 0:
            raise UserError(f"{second} is 0")
        value = value - other if sign == "-" else value / other
    try:
        return format(value, form or "")
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def _row(
    text: str, names: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> tuple[Row, list[str]]:
    name, *path = text.split(".")
    if not path:
        raise UserError(f"what of {name!r}? write NAME.METHOD.METRIC:.3f")
    return read_row(records, names.get(name, {"record": name})), path


def _value(row: Row, path: Sequence[str]) -> Any:
    """The mean over the seeds; a value that is no number must be the same in all."""
    if len(row.seeds) > 1 and path[-1] in ("low", "high"):
        return _end(row, path)
    found = [_of(seed, row, path) for seed in row.seeds]
    if all(isinstance(value, int | float) for value in found):
        return found[0] if len(set(found)) == 1 else sum(found) / len(found)
    if any(value != found[0] for value in found):
        raise UserError("not the same in all seeds")
    return found[0]


def _end(row: Row, path: Sequence[str]) -> float:
    """An end of the interval over several seeds."""
    method, metric = (path[0], path[1]) if len(path) == 3 else ("", "")
    figure = row.figure(row.method if method == "method" else method, metric)
    if figure is None or len(figure.values) == 2:
        raise UserError("two seeds have no interval" if figure else "the records have no such")
    end = figure.low if path[-1] == "low" else figure.high
    if end is None:
        raise UserError("the records have no interval of it")
    return end


def _of(seed: Seed, row: Row, path: Sequence[str]) -> Any:
    match path:
        case ["training", stage, "loss", step]:
            course = dict(_at(seed.record["training"], [stage, "course"]))
            return _at({str(key): loss for key, loss in course.items()}, [step])
        case ["training" | "config", *below]:
            return _at(seed.record[path[0]], below)
        case ["evaluation", *below]:
            return _at(seed.evaluation, below)
        case [method, metric, ("low" | "high") as end]:
            interval = _at(_method(seed, method, row), ["ci", metric])
            return interval[0 if end == "low" else 1]
        case [method, *below]:
            return _at(_method(seed, method, row), below)
    raise AssertionError(path)


def _method(seed: Seed, named: str, row: Row) -> Mapping[str, Any]:
    name = row.method if named == "method" else named
    if (held := seed.method(name)) is None:
        raise UserError(f"the record has no method {name!r}")
    return held


def _at(held: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(held, Mapping) or key not in held:
            raise UserError(f"the record has no {'.'.join(path)}")
        held = held[key]
    return held
