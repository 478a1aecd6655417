"""`first_top5`: the first gold token that is no space is among the 5 most probable."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """1 where it is."""
    return rows.each(lambda e, p: float(p.first_rank < 5))


METRIC = Metric(
    "first_top5",
    50,
    per_row,
    heading="top-5",
    column=110,
    recorded=False,
    says="or with one of the five most probable",
)
