"""`zero`: zeros in place of the slots; what the readers say by themselves."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message
from lw_jax.types import Latent


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The row's own mask and span, no content."""
    empty = dataclasses.replace(own, slots=jnp.zeros_like(own.slots))
    return ctx.delivered(batch, empty)


METHOD = Method(message, latent_bytes, order=100, latent="own", control=True)
