"""`latent`: the text crosses the wire."""

from __future__ import annotations

from lw_jax.evaluate.methods.base import Batch, Method, Scene, delivered, latent_bytes
from lw_jax.receiver.answer import Message


def message(scene: Scene, batch: Batch) -> Message:
    """What the reader makes of the latent of the row's own text."""
    return delivered(scene, batch, scene.deliver(scene.encode(batch)))


METHOD = Method(message, latent_bytes, needs_bridge=True)
