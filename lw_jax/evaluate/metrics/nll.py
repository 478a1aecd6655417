"""`nll`: nats a token of the gold answer, EOS included."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """Nats of every answer, and its tokens."""
    return [p.nll for p in rows.said], [p.tokens for p in rows.said]


METRIC = Metric(
    "nll",
    30,
    per_row,
    share=False,
    title="NLL",
    column=90,
    history=True,
    says="nats a gold token, the fewer the better",
)
