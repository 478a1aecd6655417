"""`loops`: outputs that repeat a piece of themselves back to back."""

from __future__ import annotations

from lw_jax.evaluate.metrics import degenerate
from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """1 where the output does."""
    return rows.each(lambda e, p: degenerate.loops(p.text))


METRIC = Metric("loops", 60, per_row)
