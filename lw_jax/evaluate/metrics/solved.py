"""`final`, `partial`, `failed`: worked solutions that end in a number, as GSM8K's.

The final number is right; else the format is, and a number of the question is said; else it failed.
The three add up to 1.
"""

from __future__ import annotations

from functools import partial

from lw_jax.evaluate.metrics import numbers
from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def _solved(rows: Rows) -> dict[str, list[float]]:
    pairs = list(zip(rows.examples, rows.said, strict=True))
    final = [max(numbers.final_correct(p.text, a) for a in e.answers) for e, p in pairs]
    near = [numbers.partial(p.text, e.context + " " + e.question) for e, p in pairs]
    part = [n * (1 - f) for n, f in zip(near, final, strict=True)]
    failed = [1 - f - n for f, n in zip(final, part, strict=True)]
    return {"final": final, "partial": part, "failed": failed}


def _per_row(name: str, rows: Rows) -> Values:
    values: list[float] = rows.together("solved", _solved)[name]
    return values, [1] * len(values)


def applies(rows: Rows) -> bool:
    """Whether the data set says so."""
    return rows.ends_in_number


METRICS = (
    Metric(
        "final",
        100,
        partial(_per_row, "final"),
        applies=applies,
        column=70,
        interval=True,
        says="the last number is right",
        floor="answers",
    ),
    Metric(
        "partial",
        101,
        partial(_per_row, "partial"),
        applies=applies,
        column=80,
        floor="answers",
        says="it is somewhere in the answer",
    ),
    Metric(
        "failed", 102, partial(_per_row, "failed"), applies=applies, recorded=False, floor="answers"
    ),
)
