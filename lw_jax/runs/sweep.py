"""A grid of runs, one after another, and one table of them all (docs/design.md section 7).

    python -m lw_jax.launch --config x.yaml --sweep bridge.latent_dim=64,128 --sweep seed=1,2

The lists can also be in the file, `sweep: {bridge.latent_dim: [64, 128], seed: [1, 2]}`. Every run
has a directory inside the sweep's, which also holds `sweep.json`. The same command continues a
sweep that was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lw_jax.errors import UserError
from lw_jax.runs.directory import CONFIG, check_directory
from lw_jax.runs.grid import Point
from lw_jax.utils.files import write_json

FILE = "sweep.json"
METHODS = ("latent", "deranged", "no_message", "text")
"""Methods in the table; `sweep.json` has all."""


def sweep(home: Path, points: Sequence[Point], console: Console, run: Callable[[Any], Any]) -> None:
    """Runs every point that is not finished, then shows the table.

    Args:
        home: directory of the sweep.
        points: its runs.
        console: prints for people.
        run: runs one config.

    Raises:
        UserError: the directory is a run's, or holds runs of another config.
    """
    if (home / CONFIG).is_file():
        raise UserError(
            f"run_dir: {home} holds a single run; give the sweep another --run_dir (or --name)"
        )
    for point in points:
        check_directory(point.config)
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(points, 1):
        words = ", ".join(f"{key} {value}" for key, value in point.values.items())
        console.print(f"run {number} of {len(points)}: {words}", highlight=False, markup=False)
        run(point.config)
        rows.append(_row(point))
        write_json(home / FILE, {"keys": list(point.values), "runs": rows})
    console.print(table(rows))


def _row(point: Point) -> dict[str, Any]:
    """Results of a finished run: means for each receiver and method, and the verdict."""
    assert point.config.run_dir is not None
    path = Path(point.config.run_dir) / "metrics.json"
    row: dict[str, Any] = {"values": point.values, "run_dir": point.config.run_dir}
    if not path.is_file():  # no stage evaluates
        return row
    metrics = json.loads(path.read_text(encoding="utf-8"))
    plain = {
        receiver: {
            method: {name: x for name, x in figures.items() if isinstance(x, int | float)}
            for method, figures in methods.items()
        }
        for receiver, methods in metrics["receivers"].items()
    }
    carries = {receiver: found["carries"] for receiver, found in metrics["verdict"].items()}
    return {**row, "receivers": plain, "carries": carries}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each run and receiver: F1 of the main methods, NLL of the latent, the verdict."""
    keys = list(rows[0]["values"])
    some = [figures for row in rows for figures in row.get("receivers", {}).values()]
    methods = [m for m in METHODS if any(m in figures for figures in some)]
    shown = Table(title=f"{len(rows)} runs: F1", box=None, padding=(0, 2, 0, 0))
    for name in (*keys, "receiver", *methods, "nll", "carries"):
        shown.add_column(name, justify="right" if name in methods else "left", no_wrap=True)
    for row in rows:
        values = [row["values"][key] for key in keys]
        if "receivers" not in row:
            shown.add_row(*values, "not evaluated")
        for receiver, found in row.get("receivers", {}).items():
            carries = row["carries"].get(receiver)
            shown.add_row(
                *values,
                receiver,
                *(f"{found[m]['f1']:.3f}" if m in found else "" for m in methods),
                f"{found['latent']['nll']:.3f}" if "latent" in found else "",
                "" if carries is None else "yes" if carries else "no",
            )
    return shown
