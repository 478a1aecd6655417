"""Which stretch of the source belongs to which slot."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.types import Array


def stretch_positions(lengths: Array, used: Array, slots: int) -> Array:
    """Middle of every slot's stretch, in source tokens: lengths, used [B] -> [B, slots] float32.

    used: how many of the slots share the row among them, from the first on.
    """
    number = jnp.arange(slots, dtype=jnp.float32)[None, :] + 0.5
    return number * (lengths.astype(jnp.float32) / used.astype(jnp.float32))[:, None]


def stretch_weights(index: Array, mask: Array, used: Array, slots: int) -> Array:
    """Weights [B, slots, T] that average each slot's equal stretch of a row's real tokens.

    index: [B, T] number of the token among the real ones; mask: [B, T] bool; used: [B] as above. A
    slot without a token of its own (more slots than tokens) takes the nearest; an unused one none.
    """
    share = used.astype(jnp.float32)[:, None, None]
    lengths = jnp.maximum(1, mask.sum(axis=1))[:, None, None].astype(jnp.float32)
    at = index.astype(jnp.float32)[:, None, :]
    number = jnp.arange(slots, dtype=jnp.float32)[None, :, None]
    low, high = number * lengths / share, (number + 1) * lengths / share
    inside = (at >= jnp.floor(low)) & (at < jnp.maximum(high, jnp.floor(low) + 1))
    inside = inside & mask[:, None, :] & (number < share)
    weights = inside.astype(jnp.float32)
    return weights / jnp.maximum(1.0, weights.sum(axis=-1, keepdims=True))
