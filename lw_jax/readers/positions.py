"""Positions of a message's columns in the receiver."""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.types import Array, Latent


def slot_positions(how: str, latent: Latent) -> tuple[Array, Array | None]:
    """Positions of the slots, relative to the message's start, and how far the message advances.

    Args:
        how: `columns`: 0, 1, ...; the message advances by its columns. `spread`: evenly over the
            length of the source (`latent.span`), by which the message advances.
        latent: the latent.

    Returns:
        Positions [B, M], and the advance [B] or None (the number of columns).
    """
    rows, columns = latent.mask.shape
    index = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.float32)[None], (rows, columns))
    if how == "columns" or latent.span is None:
        return index, None
    count = jnp.maximum(1, latent.mask.sum(axis=1)).astype(jnp.float32)
    positions = (index + 0.5) * (latent.span / count)[:, None]
    return positions, latent.span
