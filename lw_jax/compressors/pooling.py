"""Which stretch of the source belongs to which slot."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.types import Array


def stretch_positions(lengths: Array, slots: int) -> Array:
    """Middle of every slot's stretch, in source tokens: lengths [B] -> [B, slots] float32."""
    middle = (jnp.arange(slots, dtype=jnp.float32) + 0.5) / slots
    return lengths.astype(jnp.float32)[:, None] * middle[None, :]


def stretch_weights(index: Array, mask: Array, slots: int) -> Array:
    """Weights [B, slots, T] that average each slot's equal stretch of a row's real tokens.

    index: [B, T] number of the token among the real ones; mask: [B, T] bool. A slot without a token
    of its own (more slots than tokens) takes the nearest.
    """
    lengths = jnp.maximum(1, mask.sum(axis=1))[:, None, None].astype(jnp.float32)
    at = index.astype(jnp.float32)[:, None, :]
    number = jnp.arange(slots, dtype=jnp.float32)[None, :, None]
    low, high = number * lengths / slots, (number + 1) * lengths / slots
    inside = (at >= jnp.floor(low)) & (at < jnp.maximum(high, jnp.floor(low) + 1))
    inside = inside & mask[:, None, :]
    weights = inside.astype(jnp.float32)
    return weights / jnp.maximum(1.0, weights.sum(axis=-1, keepdims=True))
