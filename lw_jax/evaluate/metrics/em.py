"""`em`: exact match with a gold answer, as SQuAD counts it."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values
from lw_jax.evaluate.metrics.squad import exact_match


def per_row(rows: Rows) -> Values:
    """1 where the output is an answer."""
    return rows.each(lambda e, p: exact_match(p.text, e.answers))


METRIC = Metric(
    "em",
    10,
    per_row,
    title="EM",
    column=10,
    interval=True,
    history=True,
    says="answers that equal a gold one",
)
