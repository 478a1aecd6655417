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


def stretches(index: Array, lengths: Array, used: Array, slots: int) -> Array:
    """[B, slots, T] bool: which tokens stand in each slot's equal stretch of a row.

    In whole numbers: a border that is one, as 4 * 28 / 7, is on neither side of a float's error,
    which differs from program to program.

    Args:
        index: [B, T] int, index of the token among the real ones.
        lengths: [B] int, real tokens of a row, 1 or more.
        used: [B] int, number of slots, from the first on, that share the row among them; below
            46,341, that their square fits in 32 bits.
        slots: number of slots.
    """
    share, at = used.astype(jnp.int32)[:, None, None], index[:, None, :]
    number = jnp.arange(slots)[None, :, None]
    each, rest = jnp.divmod(lengths.astype(jnp.int32)[:, None, None], jnp.maximum(1, share))

    def border(slot: Array, up: bool) -> Array:
        """slot * lengths / share, rounded down or up."""
        more = slot * rest + (share - 1 if up else 0)
        return slot * each + more // jnp.maximum(1, share)

    low = border(number, up=False)
    high = jnp.maximum(border(number + 1, up=True), low + 1)
    return (at >= low) & (at < high) & (number < share)


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
    lengths = jnp.maximum(1, mask.sum(axis=1))
    inside = stretches(index, lengths, used, slots) & mask[:, None, :]
    weights = inside.astype(jnp.float32)
    return weights / jnp.maximum(1.0, weights.sum(axis=-1, keepdims=True))
