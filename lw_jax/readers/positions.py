"""Where a message's columns stand among the receiver's positions."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.types import Array, Latent


def slot_positions(how: str, latent: Latent) -> tuple[Array, Array | None]:
    """Positions [B, M] of the slots, relative to the message's start, and its advance [B] or None.

    `columns`: 0, 1, ...; the message advances by its columns. `spread`: evenly over the length of
    the source (`latent.span`), and the message advances by that length.
    """
    rows, columns = latent.mask.shape
    index = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.float32)[None], (rows, columns))
    if how == "columns" or latent.span is None:
        return index, None
    count = jnp.maximum(1, latent.mask.sum(axis=1)).astype(jnp.float32)
    positions = (index + 0.5) * (latent.span / count)[:, None]
    return positions, latent.span
