"""`text`: the whole text, read by the clean receiver; the upper bound."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, text_bytes
from lw_jax.receiver.answer import Message
from lw_jax.receiver.read import text_message


def message(ctx: EvalContext, batch: Batch, latent: None) -> Message:
    """The text's own tokens."""
    return Message(text_message(*ctx.context(batch)))


METHOD = Method(message, text_bytes)
