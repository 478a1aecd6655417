"""`no_message`: nothing in the message's place; what the receiver knows without being told."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, nothing
from lw_jax.receiver.answer import Message
from lw_jax.receiver.read import text_message


def message(ctx: EvalContext, batch: Batch, latent: None) -> Message:
    """A text of no token: nothing stands between the primer and the question."""
    ids, lengths = ctx.context(batch)
    return Message(text_message(ids, jnp.zeros_like(lengths)))


METHOD = Method(message, nothing, order=90, control=True)
