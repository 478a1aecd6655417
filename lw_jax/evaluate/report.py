"""What an evaluation writes: the table on the terminal, metrics.json, predictions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lw_jax.config.run import write_text
from lw_jax.data.example import Example
from lw_jax.evaluate.metrics import squad
from lw_jax.evaluate.summary import Prediction

COLUMNS = ("em", "f1", "nll", "first_top1", "first_top5", "distinct")
EXTRA = ("entities", "final", "partial")
"""Shown where the rows have them: read-back and GSM8K."""


def table(receiver: str, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """One receiver's methods, a line each: figures with their 95 % interval."""
    extra = [c for c in EXTRA if any(c in figures for figures in methods.values())]
    shown = Table(title=f"receiver {receiver}")
    shown.add_column("method", no_wrap=True)
    for name in (*COLUMNS, *extra, "columns", "n", "seconds"):
        shown.add_column(name, justify="right", no_wrap=True)
    for method, figures in methods.items():
        shown.add_row(
            method,
            *(_figure(figures, name) for name in (*COLUMNS, *extra)),
            f"{figures['columns']:.1f}",
            str(figures["n"]),
            f"{figures['seconds']:.1f}",
        )
    return shown


def alarms(receiver: str, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines to shout under the table: scorer and decoder that disagree."""
    return [
        f"ALARM {receiver}, {method}: in {figures['disagreements']} of {figures['compared']} rows "
        "the argmax of the scorer and the greedy output are not the same answer"
        for method, figures in methods.items()
        if figures["disagreements"]
    ]


def prediction_line(
    example: Example, said: Mapping[str, Mapping[str, Prediction]]
) -> dict[str, Any]:
    """One line of predictions.jsonl: the example and every receiver's and method's output."""
    return {
        "id": example.id,
        "context_id": example.context_id,
        "level": example.level,
        "context": example.context,
        "question": example.question,
        "answers": list(example.answers),
        "receivers": {
            receiver: {method: _said(example, p) for method, p in by_method.items()}
            for receiver, by_method in said.items()
        },
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write a JSON-lines file whole or not at all."""
    write_text(path, "".join(json.dumps(_finite(x), ensure_ascii=False) + "\n" for x in lines))


def append_line(path: Path, content: Any) -> None:
    """Append one JSON line, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(content), ensure_ascii=False) + "\n")


def _figure(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    bounds: Sequence[float] | None = figures["ci"].get(name)
    spread = "" if bounds is None else f" [{bounds[0]:.2f} {bounds[1]:.2f}]"
    return f"{figures[name]:.3f}{spread}"


def _said(example: Example, p: Prediction) -> dict[str, Any]:
    return {
        "text": p.text,
        "em": squad.exact_match(p.text, example.answers),
        "f1": squad.f1(p.text, example.answers),
        "nll": p.nll / max(1, p.tokens),
        "first_rank": p.first_rank,
    }


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {str(k): _finite(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(v) for v in content]
    return content
