"""`f1`: words in common with a gold answer, as SQuAD counts them."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values
from lw_jax.evaluate.metrics.squad import f1


def per_row(rows: Rows) -> Values:
    """F1 with the nearest answer."""
    return rows.each(lambda e, p: f1(p.text, e.answers))


METRIC = Metric(
    "f1",
    20,
    per_row,
    title="F1",
    column=20,
    interval=True,
    history=True,
    says="words shared with a gold answer",
)
