"""`token_budget_last`: the text's last tokens, as many as the message has receiver columns."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, Sent, budget
from lw_jax.receiver.answer import Message
from lw_jax.receiver.read import text_message
from lw_jax.types import Latent


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The last tokens of the text, moved to the left."""
    ids, lengths = ctx.context(batch)
    kept = jnp.minimum(lengths, budget(ctx, batch, own))
    index = jnp.arange(ids.shape[1])[None] + (lengths - kept)[:, None]
    index = jnp.minimum(index, ids.shape[1] - 1)  # beyond `kept`: padding, never read
    return Message(text_message(jnp.take_along_axis(ids, index, axis=1), kept))


def wire_bytes(sent: Sent) -> int:
    """UTF-8 bytes of what is left of the text."""
    return len(sent.tokenizer.backend.decode(sent.ids[-sent.columns :]).encode())


METHOD = Method(message, wire_bytes, order=40, latent="own", wire=False)
