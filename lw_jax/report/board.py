"""A run's figures as TensorBoard events: its diagnostics, and of its evaluation the table, rows of
text and the hyperparameters with what they reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lw_jax.evaluate.metrics import columns
from lw_jax.report.read import Read
from lw_jax.report.svg import number
from lw_jax.train.board import FOLDER, Board

EVALUATION, HPARAMS = "evaluation", "hparams"
SAMPLES = 20
"""Rows of text."""


def write_evaluation(run: Read, root: Path) -> Path | None:
    """Write the events of a run's last evaluation anew; their folder, None without an evaluation.

    Args:
        run: what was read of it.
        root: the run's directory.
    """
    if run.last is None:
        return None
    folder = root / FOLDER / EVALUATION
    for old in folder.rglob("events.*"):
        old.unlink()
    metrics, held = run.metrics, Board(folder)
    step = int(metrics.get("parameters", {}).get("step") or 0)
    reached: dict[str, float] = {}
    for receiver, methods in metrics["receivers"].items():
        figures = {
            f"{receiver}/{method}/{key}": value
            for method, found in methods.items()
            for key, value in found.items()
        }
        held.figures(step, EVALUATION, figures)
        held.writer.add_text(f"table/{receiver}", _table(methods), step)
        reached |= {
            f"{receiver}/{method}/{key}": found[key]
            for method, found in methods.items()
            for key in ("em", "nll")
            if key in found
        }
    for row in run.rows[:SAMPLES]:
        held.text(f"rows/{row['id']}", _row(row), step)
    held.writer.add_hparams(dict(_flat(run.config)), reached, HPARAMS, step)
    held.close()
    return folder


def _table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, as Markdown."""
    first = next(iter(methods.values()))
    names = [*(m.name for m in columns() if m.name in first), "columns"]
    lines = [f"| method | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method, found in methods.items():
        cells = (_cell(found, name) for name in names)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], name: str) -> str:
    value, ci = found.get(name), found.get("ci", {}).get(name)
    shown = number(value)
    return f"{shown} [{number(ci[0])}, {number(ci[1])}]" if ci else shown


def _row(row: Mapping[str, Any]) -> Iterable[str]:
    yield f"{row['question'] or '(no question)'}  gold: {' / '.join(row['answers'])}"
    for receiver, methods in row["receivers"].items():
        for method, one in methods.items():
            yield f"{receiver} {method}: {one['text']}"
    yield row["context"]


def _flat(value: Any, above: str = "") -> Iterable[tuple[str, str | float | bool]]:
    """A config's keys and values, as hyperparameters are: texts, numbers, truth values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{above}.{key}" if above else str(key))
    elif value is not None:
        yield above, value if isinstance(value, bool | int | float) else str(value)
