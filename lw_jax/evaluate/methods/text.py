"""`text`: the whole text in words, read by the receiver without a bridge; the upper bound."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, reads_text, text_bytes

METHOD = Method(reads_text, text_bytes, order=10)
