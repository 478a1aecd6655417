"""`latent`: the text crosses the wire."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message


def message(ctx: EvalContext, batch: Batch) -> Message:
    """What the reader makes of the latent of the row's own text."""
    return ctx.delivered(batch, ctx.encode(batch))


METHOD = Method(message, latent_bytes, needs_bridge=True)
