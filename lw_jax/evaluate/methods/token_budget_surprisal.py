"""`token_budget_surprisal`: the text's most surprising tokens, as many as the message has columns.

Surprising to the sender, which is loaded whole for it, with its head.
"""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, left_bytes, reads_text
from lw_jax.text.budget import most_surprising

METHOD = Method(
    reads_text, left_bytes, order=47, cut=most_surprising, surprisal=True, default=False
)
