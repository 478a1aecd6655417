"""`latent`: the text crosses the wire."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message
from lw_jax.types import Latent


def message(ctx: EvalContext, batch: Batch, latent: Latent) -> Message:
    """What the reader makes of the latent that the row was sent."""
    return ctx.delivered(batch, latent)


METHOD = Method(message, latent_bytes, latent="own")
