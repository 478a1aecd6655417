"""How far two vectors lie apart, and means over what is real."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from lw_jax.types import Array

Distance = Literal["cosine", "mse", "relative_mse"]

TINY = 1e-12
"""Added to squared lengths: embeddings at the earlier systems' RMS of 0.0027 stay far above it."""


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of x [B, T, D] over the tokens of mask [B, T], float32 [B, D]; 0 where there is none."""
    keep = mask.astype(jnp.float32)
    total = jnp.einsum("btd,bt->bd", x.astype(jnp.float32), keep)
    return total / jnp.maximum(1.0, jnp.sum(keep, axis=1))[:, None]


def unit(x: Array) -> Array:
    """x [..., D] at length 1, float32; a vector of no length stays, and has no gradient: that of a
    slot left out by latent dropout would be a million times the others'."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    real = square > TINY
    return jnp.where(real, x / jnp.sqrt(jnp.where(real, square, 1.0) + TINY), 0.0)


def cosine(x: Array, y: Array) -> Array:
    """Cosine [...] of x and y [..., D]."""
    return jnp.sum(unit(x) * unit(y), axis=-1)


def distance(kind: Distance, x: Array, target: Array) -> Array:
    """[...] between x and target [..., D].

    `cosine`: 1 - cosine; `mse`: mean square of the difference; `relative_mse`: that over the mean
    square of the target, so that it does not vanish for quiet targets (fault 8 of docs/faults.md).
    """
    if kind == "cosine":
        return 1.0 - cosine(x, target)
    target = target.astype(jnp.float32)
    square = jnp.mean(jnp.square(x.astype(jnp.float32) - target), axis=-1)
    if kind == "mse":
        return square
    return square / (jnp.mean(jnp.square(target), axis=-1) + TINY)
