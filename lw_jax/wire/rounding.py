"""Slots as a codec leaves them, inside a trace: equal to `lw_jax.wire.codecs` on the host.

Values that are already on a codec's grid do not change, so a bottleneck's slots cross the wire
unchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lw_jax.types import Array


def as_sent(slots: Array, codec_name: str) -> Array:
    """Slots [..., d] after one of `lw_jax.wire.codecs.CODECS`, in their own dtype.

    A value that a 16-bit float cannot hold becomes its largest number, while the codec refuses it.
    """
    if codec_name == "float32":
        return slots
    if codec_name.startswith("int"):
        return on_grid(slots, int(codec_name.removeprefix("int")))
    limit = float(jnp.finfo(codec_name).max)
    return jnp.clip(slots, -limit, limit).astype(codec_name).astype(slots.dtype)


def on_grid(slots: Array, bits: int) -> Array:
    """Slots [..., d] on the symmetric grid of k bits with one bfloat16 scale per slot."""
    x = slots.astype(jnp.float32)
    limit = 2 ** (bits - 1) - 1
    scale = _truncated(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / limit)
    some = scale >= jnp.finfo(jnp.float32).tiny
    codes = jnp.clip(jnp.round(x / jnp.where(some, scale, 1.0)), -limit, limit)
    return jnp.where(some, codes * scale, 0.0).astype(slots.dtype)


def _truncated(x: Array) -> Array:
    """float32 rounded towards zero to bfloat16, as `lw_jax.wire.codecs` rounds a scale."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
