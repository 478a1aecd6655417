"""`relay`: the sender writes, the receiver reads what it wrote.

What is written comes with the rows (`lw_jax.evaluate.relay`): each row's context is the sender's
text, which stands in the message's place like any other.
"""

from __future__ import annotations

from lw_jax.evaluate.methods import text
from lw_jax.evaluate.methods.base import Method, text_bytes

METHOD = Method(text.message, text_bytes, relayed=True)
