"""How a compressor reads the source before it pools it."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.layers.transformer import Stack, sinusoid
from lw_jax.types import Array, Features


def entered(
    view: Features, width: int, encoder: Stack, train: bool, rotary: bool = False
) -> tuple[Array, Array, Array | None]:
    """The source, projected and after self-attention.

    Called inside a compact module: the projection is its parameter `enter`.

    Args:
        view: the source.
        width: width to project to.
        encoder: the self-attention layers.
        train: whether this is a training step.
        rotary: whether attention is rotary.

    Returns:
        The source [B, T, width]; the index [B, T] of every token among the real ones; the same as
        positions for rotary attention, or None.
    """
    index = jnp.cumsum(view.mask, axis=1) - 1
    x = nn.Dense(width, name="enter")(view.x) + sinusoid(index, width)
    at = index.astype(jnp.float32) if rotary else None
    return encoder(x, view.mask, train=train, at=at), index, at
