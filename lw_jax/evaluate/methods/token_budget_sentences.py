"""`token_budget_sentences`: the sentences nearest the question, up to the message's columns."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, left_bytes, reads_text
from lw_jax.text.budget import nearest_sentences

METHOD = Method(reads_text, left_bytes, order=45, cut=nearest_sentences, default=False)
