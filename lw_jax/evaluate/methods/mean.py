"""`mean`: the mean slots of training texts; what a message says whatever the text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message
from lw_jax.types import Latent


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The row's own mask and span, the mean slots; beyond those measured the mean of all."""
    assert ctx.mean is not None  # measured before any method runs
    place = jnp.minimum(jnp.arange(own.slots.shape[1]), ctx.mean.shape[0] - 1)
    mean = ctx.mean[place].astype(own.slots.dtype)
    slots = jnp.broadcast_to(mean[None], own.slots.shape) * own.mask[..., None]
    return ctx.delivered(batch, dataclasses.replace(own, slots=slots))


METHOD = Method(message, latent_bytes, order=110, latent="own", mean=True, control=True)
