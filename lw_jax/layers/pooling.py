"""Which stretch of the source belongs to each slot."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.types import Array


def stretch_positions(lengths: Array, used: Array, slots: int) -> Array:
    """[B, slots] float32: the middle of every slot's stretch, in source tokens.

    Args:
        lengths: [B] source tokens of the rows.
        used: [B], number of slots, from the first on, that share the row among them.
        slots: number of slots.
    """
    number = jnp.arange(slots, dtype=jnp.float32)[None, :] + 0.5
    return number * (lengths.astype(jnp.float32) / used.astype(jnp.float32))[:, None]


def stretch_weights(index: Array, mask: Array, used: Array, slots: int) -> Array:
    """[B, slots, T]: weights that average each slot's equal stretch of a row's real tokens.

    A slot without a token of its own (more slots than tokens) takes the nearest token; an unused
    slot takes none.

    Args:
        index: [B, T] index of the token among the real ones.
        mask: [B, T] bool, which tokens are real.
        used: [B], number of slots, from the first on, that share the row among them.
        slots: number of slots.
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
