"""`relay`: the sender writes, the receiver reads what it wrote.

What is written comes with the rows (`lw_jax.evaluate.relay`): each row's context is the sender's
text, which stands in the message's place like any other.
"""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Method, reads_text, text_bytes

METHOD = Method(reads_text, text_bytes, order=70, relayed=True, default=False)
