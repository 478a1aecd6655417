"""A grid of runs, one after another, and one table of them all (docs/design.md section 7).

    python -m lw_jax.launch --config x.yaml --sweep bridge.latent_dim=64,128 --sweep seed=1,2

The lists can also be in the file, `sweep: {bridge.latent_dim: [64, 128], seed: [1, 2]}`. Every run
has a directory inside the sweep's, which also holds `sweep.json`. The same command continues a
sweep that was stopped. A run that fails is a line of the table, and the others go on; with
`--dry_run` the runs are listed and none begins.

Every run has a verdict against the first one (so the first value of a list is the one to compare
with), by F1 of the latent, for every receiver:

| word | when |
|---|---|
| `collapsed` | it failed; or F1, or the share of different outputs, is below 1/4 of the first's |
| `improved` | F1 is above the interval of the first's |
| `degraded` | F1 is below it |
| `stable` | F1 is inside it |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lw_jax.errors import UserError
from lw_jax.runs.directory import CONFIG, check_directory, read_finished
from lw_jax.runs.grid import Point
from lw_jax.train.diagnostics import DivergedError
from lw_jax.utils.failures import in_one_line
from lw_jax.utils.files import damaged, read_json, write_json

FILE = "sweep.json"
COLLAPSED = 0.25
"""Share of the first run's F1, or of its different outputs, below which a run has collapsed."""
METHODS = ("latent", "deranged", "no_message", "text")
"""Methods in the table; `sweep.json` has all."""


def sweep(home: Path, points: Sequence[Point], console: Console, run: Callable[[Any], Any]) -> int:
    """Runs every point that is not finished, then shows the table.

    Args:
        home: directory of the sweep.
        points: its runs.
        console: prints for people.
        run: runs one config.

    Returns:
        How many runs failed.

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
        rows.append(_run(point, console, run))
        rows[-1] |= {"against_first": against(rows[0], rows[-1])} if number > 1 else {}
        write_json(home / FILE, {"keys": list(point.values), "runs": rows})
    console.print(table(rows))
    failed = [row for row in rows if "error" in row]
    for row in failed:
        where = ", ".join(f"{key} {value}" for key, value in row["values"].items())
        line = f"failed: {where}: {row['error']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return len(failed)


def listed(home: Path, points: Sequence[Point], console: Console) -> None:
    """What a sweep would run: every point with its directory, and how far it is. Nothing begins.

    Args:
        home: directory of the sweep.
        points: its runs.
        console: prints for people.
    """
    shown = Table(title=f"{len(points)} runs in {home}", box=None, padding=(0, 2, 0, 0))
    for name in (*points[0].values, "run directory", "stages done"):
        shown.add_column(name, no_wrap=True)
    for point in points:
        check_directory(point.config)
        assert point.config.run_dir is not None
        done = read_finished(Path(point.config.run_dir))
        count = f"{len(done)} of {len(point.config.stages)}"
        shown.add_row(*point.values.values(), Path(point.config.run_dir).name, count)
    console.print(shown)


def against(first: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    """The verdicts of a run against the first one, by receiver; {} where nothing is to compare.

    Args:
        first: results of the first run.
        row: results of the other.
    """
    receivers = first.get("receivers", {})
    if "error" in row:
        return dict.fromkeys(receivers, "collapsed")
    verdicts = {}
    for receiver, methods in row.get("receivers", {}).items():
        base, own = receivers.get(receiver, {}).get("latent"), methods.get("latent")
        if base is not None and own is not None and "f1_ci" in base:
            verdicts[receiver] = _verdict(base, own)
    return verdicts


def _verdict(base: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    low, high = base["f1_ci"]
    fewest = COLLAPSED * base.get("distinct", 0.0)
    if own["f1"] < COLLAPSED * base["f1"] or own.get("distinct", 1.0) < fewest:
        return "collapsed"
    if own["f1"] > high:
        return "improved"
    return "degraded" if own["f1"] < low else "stable"


def _run(point: Point, console: Console, run: Callable[[Any], Any]) -> dict[str, Any]:
    """Runs a point.

    Returns:
        Its results, or what was wrong in one line.
    """
    row: dict[str, Any] = {"values": point.values, "run_dir": point.config.run_dir}
    try:
        run(point.config)
        return _row(point)
    except UserError as error:
        line = " ".join(str(error).split())
        row |= {"diverged": error.step} if isinstance(error, DivergedError) else {}
    except Exception as error:
        said = in_one_line(error)
        if said is None:
            raise
        line = said
    console.print(f"error: {line}", highlight=False, markup=False, soft_wrap=True)
    return {**row, "error": line}


def _row(point: Point) -> dict[str, Any]:
    """Results of a finished run: means for each receiver and method, and the verdict."""
    assert point.config.run_dir is not None
    path = Path(point.config.run_dir) / "metrics.json"
    row: dict[str, Any] = {"values": point.values, "run_dir": point.config.run_dir}
    if not path.is_file():  # no stage evaluates
        return row
    metrics = read_json(path, dict)
    try:
        plain = {
            receiver: {
                method: {name: x for name, x in figures.items() if isinstance(x, int | float)}
                | {f"{name}_ci": ci for name, ci in figures.get("ci", {}).items() if name == "f1"}
                for method, figures in methods.items()
            }
            for receiver, methods in metrics["receivers"].items()
        }
        carries = {receiver: found["carries"] for receiver, found in metrics["verdict"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None
    return {**row, "receivers": plain, "carries": carries}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each run and receiver: F1 of the main methods, NLL of the latent, the verdict.

    The last column is for a run that has no figures, and says why.
    """
    keys = list(rows[0]["values"])
    some = [figures for row in rows for figures in row.get("receivers", {}).values()]
    methods = [m for m in METHODS if any(m in figures for figures in some)]
    shown = Table(title=f"{len(rows)} runs: F1", box=None, padding=(0, 2, 0, 0))
    judged = ["against the first"] if any(row.get("against_first") for row in rows) else []
    notes = ["run"] if any("receivers" not in row for row in rows) else []
    for name in (*keys, "receiver", *methods, "nll", "carries", *judged, *notes):
        shown.add_column(name, justify="right" if name in methods else "left", no_wrap=True)
    for row in rows:
        values = [row["values"][key] for key in keys]
        if "receivers" not in row:
            shown.add_row(*values, *[""] * (len(methods) + 3 + len(judged)), _why(row))
        for receiver, found in row.get("receivers", {}).items():
            carries = row["carries"].get(receiver)
            shown.add_row(
                *values,
                receiver,
                *(f"{found[m]['f1']:.3f}" if m in found else "" for m in methods),
                f"{found['latent']['nll']:.3f}" if "latent" in found else "",
                "" if carries is None else "yes" if carries else "no",
                *([row.get("against_first", {}).get(receiver, "")] if judged else []),
            )
    return shown


def _why(row: Mapping[str, Any]) -> str:
    """Why a run has no figures."""
    if "diverged" in row:
        return f"diverged at step {row['diverged']}"
    return "failed" if "error" in row else "not evaluated"
