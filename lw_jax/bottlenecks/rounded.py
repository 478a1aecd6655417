"""Rounds the slots to a 16-bit float, as they are sent; the gradient passes straight through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lw_jax.types import Array, Latent


@dataclass(frozen=True)
class Config:
    """Rounding to a 16-bit float.

    Args:
        dtype: the type that crosses the wire.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"


def apply(config: Config, latent: Latent) -> Latent:
    """Slots rounded to the wire's type, kept in float32 (straight-through estimator)."""
    x: Array = latent.slots
    limit = float(jnp.finfo(config.dtype).max)
    sent = jnp.clip(x, -limit, limit).astype(config.dtype).astype(x.dtype)
    return latent.replace(slots=x + jax.lax.stop_gradient(sent - x))  # type: ignore[attr-defined]


def wire_dtype(config: Config) -> str:
    """The type of a slot's entries on the wire."""
    return config.dtype
