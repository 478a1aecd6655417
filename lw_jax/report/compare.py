"""Runs side by side: the same rows, with paired intervals of what is different."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lw_jax.errors import UserError
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.methods import in_order, is_method
from lw_jax.report.page import render, run_of_page
from lw_jax.report.read import ADVICE, PREDICTIONS, Read, read
from lw_jax.report.svg import Chart, Series, interval
from lw_jax.utils import files
from lw_jax.utils.files import write_text

METRICS = {"em": "exact match", "f1": "F1", "nll": "nats a gold token"}
"""Figures of a row in predictions.jsonl that are compared."""
SHARES = ("em", "f1")
SEED, RESAMPLES = 42, 2000
FEWEST = 2
MOST_KEYS = 200


@dataclass(frozen=True)
class Cell:
    """One run's figure of one method, on the rows that all runs have.

    Attributes:
        value: the mean.
        ci: its 95 % interval.
        difference: to the first run, mean over the same rows; None: of the first run itself.
        apart: the difference's interval.
    """

    value: float
    ci: tuple[float, float]
    difference: float | None = None
    apart: tuple[float, float] | None = None

    @property
    def clear(self) -> bool:
        """Whether the difference's interval excludes 0."""
        return self.apart is not None and (self.apart[0] > 0 or self.apart[1] < 0)


@dataclass(frozen=True)
class Part:
    """One receiver's table of one figure.

    Attributes:
        receiver: its name.
        metric: the figure.
        lines: for each method a cell a run; None where the run has no such method.
    """

    receiver: str
    metric: str
    lines: dict[str, list[Cell | None]]

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"receiver {self.receiver}: {METRICS[self.metric]}"


@dataclass(frozen=True)
class Compared:
    """Several runs on the rows that all of them have.

    Attributes:
        runs: what was read of them.
        names: of them, all different.
        rows: how many rows they share.
        contexts: of how many texts.
        left_out: rows of each that the others do not have.
        parts: the tables.
        keys: config keys in which they differ, with each run's value.
    """

    runs: Sequence[Read]
    names: Sequence[str]
    rows: int
    contexts: int
    left_out: Sequence[int]
    parts: Sequence[Part]
    keys: Mapping[str, Sequence[str]]


def compare(homes: Sequence[Path]) -> Compared:
    """Reads runs and compares their last evaluations.

    Args:
        homes: directories of runs, or of their other evaluations: further ones
            (`RUN/evaluations/N`), and those of stages before the last (`RUN/STAGE`).

    Raises:
        UserError: fewer than two, one is given twice, has no rows or has lost some, or they share
            none.
    """
    if len(homes) < FEWEST:
        raise UserError("compare: give two run directories, or more")
    known: set[Path] = set()
    for home in homes:
        if home.resolve() in known:
            raise UserError(f"compare: {home} is given twice; give different runs")
        known.add(home.resolve())
    runs = [read(home) for home in homes]
    for run in runs:
        if not run.rows:
            raise UserError(
                f"{run.home}: no predictions.jsonl with rows in it; `lw-jax evaluate {run.home}` "
                "makes it"
            )
        figures = [one for of in run.metrics["receivers"].values() for one in of.values()]
        made = min((n for one in figures if isinstance(n := one.get("n"), int)), default=0)
        if run.damaged.get(PREDICTIONS) or len(run.rows) < made:
            why = f"{len(run.rows)} whole lines, and metrics.json is of {made} rows"
            raise files.damaged(run.home / PREDICTIONS, why, ADVICE)
    tables = [{_key(row): row for row in run.rows} for run in runs]
    shared = [key for key in tables[0] if all(key in table for table in tables[1:])]
    contexts = [str(tables[0][key]["context_id"]) for key in shared]
    if len(set(contexts)) < FEWEST:
        raise UserError(
            f"compare: {', '.join(map(str, homes))} share rows of {len(set(contexts))} texts, so "
            "nothing can be compared; evaluate them on the same rows (data, rows and seed of the "
            "evaluate stage)"
        )
    rows = [[table[key] for key in shared] for table in tables]
    return Compared(
        runs,
        [str(home) for home in homes],
        len(shared),
        len(set(contexts)),
        [len(table) - len(shared) for table in tables],
        [part for names in _receivers(runs) for part in _parts(names, rows, contexts)],
        _keys(runs),
    )


def _key(row: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """What two runs' rows have in common if they ask the same."""
    return row["context"], row["question"], tuple(row["answers"])


def _receivers(runs: Sequence[Read]) -> list[list[str]]:
    """Receivers that are compared, by each run's name of them.

    Raises:
        UserError: the runs have no receiver in common.
    """
    named = [list(run.metrics["receivers"]) for run in runs]
    common = [name for name in named[0] if all(name in other for other in named[1:])]
    if common:
        return [[name] * len(runs) for name in common]
    if all(len(names) == 1 for names in named):
        return [[names[0] for names in named]]
    said = "; ".join(
        f"{run.home} has {', '.join(names)}" for run, names in zip(runs, named, strict=True)
    )
    raise UserError(f"compare: no receiver in common: {said}")


def _parts(
    names: Sequence[str], rows: Sequence[Sequence[Mapping[str, Any]]], groups: Sequence[str]
) -> list[Part]:
    title = " / ".join(dict.fromkeys(names))
    said = [
        [row["receivers"].get(name, {}) for row in table]
        for name, table in zip(names, rows, strict=True)
    ]
    found = {method for table in said for one in table for method in one}
    order = [
        *in_order(n for n in found if is_method(n)),
        *sorted(n for n in found if not is_method(n)),
    ]
    parts = []
    for metric in METRICS:
        lines: dict[str, list[Cell | None]] = {}
        for method in order:
            values = [_values(table, method, metric) for table in said]
            first = values[0]
            lines[method] = [
                _cell(own, None if own is first else first, groups, metric) for own in values
            ]
        parts.append(Part(title, metric, lines))
    return parts


def _values(
    table: Sequence[Mapping[str, Any]], method: str, metric: str
) -> NDArray[np.float64] | None:
    """A figure row by row; None where a row lacks it."""
    found = [one.get(method, {}).get(metric) for one in table]
    return None if any(v is None for v in found) else np.asarray(found, np.float64)


def _cell(
    own: NDArray[np.float64] | None,
    first: NDArray[np.float64] | None,
    groups: Sequence[str],
    metric: str,
) -> Cell | None:
    if own is None:
        return None
    bounds = (0.0, 1.0) if metric in SHARES else None
    how: dict[str, Any] = {"groups": groups, "seed": SEED, "resamples": RESAMPLES, "bounds": bounds}
    ci = bootstrap.interval(own, **how)
    if first is None:
        return Cell(float(own.mean()), ci)
    mean, apart = bootstrap.paired(own, first, **how)
    return Cell(float(own.mean()), ci, mean, apart)


def _keys(runs: Sequence[Read]) -> dict[str, list[str]]:
    """Keys of the configs that are not the same in all runs."""
    flat = [dict(_flat(run.config)) for run in runs]
    every = dict.fromkeys(key for one in flat for key in one)
    found = {key: [one.get(key, "–") for one in flat] for key in every}
    differ = {k: v for k, v in found.items() if len(set(v)) > 1 and k != "run_dir"}
    return dict(list(differ.items())[:MOST_KEYS])


def _flat(value: Any, above: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            pair
            for key, inner in value.items()
            for pair in _flat(inner, f"{above}.{key}" if above else str(key))
        ]
    return [(above, str(value))]


# For people


def show(found: Compared, console: Console, metric: str = "em") -> None:
    """The tables of one figure on the terminal."""
    for i, name in enumerate(found.names, 1):
        console.print(f"{i}: {name}", highlight=False, soft_wrap=True)
    for line in about(found):
        console.print(line, highlight=False, soft_wrap=True)
    for part in found.parts:
        if part.metric != metric:
            continue
        table = Table(title=part.title, box=None, padding=(0, 2, 0, 0))
        table.add_column("method", no_wrap=True)
        for i in range(1, len(found.names) + 1):
            table.add_column(f"{i}", justify="right", no_wrap=True)
            if i > 1:
                table.add_column(f"{i} - 1", justify="right", no_wrap=True)
        for method, cells in part.lines.items():
            texts: list[str] = []
            for i, cell in enumerate(cells):
                texts.append("–" if cell is None else f"{cell.value:.3f}")
                if i:
                    texts.append("–" if cell is None else difference(cell))
            table.add_row(method, *texts)
        Console(file=console.file, width=max(console.width, 40 + 36 * len(found.names))).print(
            table
        )


def about(found: Compared) -> list[str]:
    """What is compared, in words."""
    lines = [
        f"{found.rows} rows of {found.contexts} texts that all have; differences are over the same "
        "rows, with 95 % intervals (bootstrap over texts); * where it excludes 0."
    ]
    lines += [
        f"{count} rows of {name} are not in all of them, and are left out."
        for name, count in zip(found.names, found.left_out, strict=True)
        if count
    ]
    return lines


def difference(cell: Cell) -> str:
    """A difference and its interval."""
    if cell.difference is None or cell.apart is None:
        return ""
    star = "*" if cell.clear else " "
    low, high = cell.apart
    return f"{cell.difference:+.3f} [{low:+.3f}, {high:+.3f}]{star}"


def write(found: Compared, path: Path) -> Path:
    """Write the page of a comparison; its path."""
    curves: list[Chart] = []
    for stage in dict.fromkeys(e["stage"] for run in found.runs for e in run.journal):
        for kind, key, title in _CURVES:
            series = [
                Series(
                    str(i),
                    [
                        (e["step"], float(value))
                        for e in run.journal
                        if e["stage"] == stage and e["kind"] == kind
                        for name, value in e.items()
                        if name.endswith(key) and isinstance(value, int | float)
                    ],
                )
                for i, run in enumerate(found.runs, 1)
            ]
            if any(s.points for s in series):
                curves.append(Chart(f"{title}, stage {stage}", series))
    parts = [
        {
            "title": part.title,
            "metric": part.metric,
            "lines": [
                {
                    "method": method,
                    "cells": [
                        None
                        if cell is None
                        else {
                            "value": f"{cell.value:.3f}",
                            "ci": f"{cell.ci[0]:.3f} to {cell.ci[1]:.3f}",
                            "strip": interval(cell.value, *cell.ci, colour=i % 6)
                            if part.metric in SHARES
                            else "",
                            "difference": difference(cell).rstrip(" *"),
                            "excludes_zero": cell.clear,
                        }
                        for i, cell in enumerate(cells)
                    ],
                }
                for method, cells in part.lines.items()
            ],
        }
        for part in found.parts
    ]
    page = render(
        "compare.html",
        title="Runs side by side",
        names=found.names,
        about=about(found),
        parts=parts,
        keys=found.keys,
        curves=curves,
        runs=[run_of_page(run) for run in found.runs],
    )
    write_text(path, page)
    return path


_CURVES = (
    ("train", "loss", "Loss"),
    ("evaluate", "/accuracy", "Accuracy"),
)
