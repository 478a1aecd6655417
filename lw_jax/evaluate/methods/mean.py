"""`mean`: the training set's mean slots; what the wire says whatever the text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import (
    Batch,
    Message,
    Method,
    Scene,
    delivered,
    latent_bytes,
)


def message(scene: Scene, batch: Batch) -> Message:
    """The row's own mask and span, the mean slots.

    Raises:
        UserError: the mean is of fewer slots than these texts need.
    """
    own = scene.encode(batch)
    if scene.mean is None or scene.mean.shape[0] < own.slots.shape[1]:
        held = 0 if scene.mean is None else scene.mean.shape[0]
        raise UserError(
            f"mean latent: {held} slots are held, these rows have {own.slots.shape[1]}; "
            "delete mean_latent.npz so that it is measured again"
        )
    mean = scene.mean[: own.slots.shape[1]].astype(own.slots.dtype)
    slots = jnp.broadcast_to(mean[None], own.slots.shape) * own.mask[..., None]
    return delivered(scene, batch, scene.deliver(dataclasses.replace(own, slots=slots)))


METHOD = Method(message, latent_bytes, needs_bridge=True)
