"""`first_top1`: the first gold token that is no space is among the 1 most probable."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """1 where it is."""
    return rows.each(lambda e, p: float(p.first_rank < 1))


METRIC = Metric(
    "first_top1",
    40,
    per_row,
    heading="top-1",
    column=100,
    recorded=False,
    says="the gold answer begins with the most probable token",
)
