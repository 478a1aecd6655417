"""`nll_words`: nats a token of the gold answer, its EOS left out.

A receiver that was not tuned to end where the answer does pays several nats there, whatever it
reads: of a text that is read back this says how well its words were read.
"""

from __future__ import annotations

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    """Nats of every answer but its last token, and how many tokens those are."""
    return [p.nll - p.end_nll for p in rows.said], [p.tokens - 1 for p in rows.said]


def applies(rows: Rows) -> bool:
    """Whether some answer has a token besides EOS."""
    return any(p.tokens > 1 for p in rows.said)


METRIC = Metric(
    "nll_words", 31, per_row, applies=applies, share=False, title="NLL without EOS", recorded=False
)
