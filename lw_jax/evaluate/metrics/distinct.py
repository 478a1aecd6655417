"""`distinct`: share of different outputs; one for all texts is collapse."""

from __future__ import annotations

from lw_jax.evaluate.metrics import degenerate
from lw_jax.evaluate.metrics.base import Metric, Rows


def whole(rows: Rows) -> float:
    """Of all rows."""
    return degenerate.distinct([p.text for p in rows.said])


METRIC = Metric("distinct", 110, whole=whole, column=120, says="share of different answers")
