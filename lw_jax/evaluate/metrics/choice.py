"""`choice`: the most probable of a few candidates is a right answer, whatever is written."""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """1 where it is."""
    return rows.each(lambda e, p: float(p.choice in {a.strip() for a in e.answers}))


def applies(rows: Rows) -> bool:
    """Whether there were candidates."""
    return all(p.nats for p in rows.said)


METRIC = Metric(
    "choice",
    70,
    per_row,
    applies=applies,
    column=30,
    interval=True,
    says="the right label is the most probable one",
)
