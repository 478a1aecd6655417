"""How many words an answer has."""

from lw_jax.evaluate.metrics.base import Metric, Rows, Values


def per_row(rows: Rows) -> Values:
    return rows.each(lambda example, said: float(len(said.text.split())))


METRIC = Metric("words", order=900, per_row=per_row, share=False)
