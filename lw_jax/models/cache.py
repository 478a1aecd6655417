"""The static key/value cache of a decoder: rows of different lengths, each packed at the left."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import struct

from lw_jax.models.arch import Arch
from lw_jax.models.rope import angles, rotate
from lw_jax.types import KV, Array


@struct.dataclass
class Cache:
    """Keys (rotated) and values of the tokens run so far.

    Attributes:
        k: [L, B, S, K, h] keys, room for S tokens in a row.
        v: [L, B, S, K, h] values.
        positions: [B, S] float32 positions of the tokens.
        lengths: [B] int32, how many columns of a row are filled.
    """

    k: Array
    v: Array
    positions: Array
    lengths: Array


def new_cache(arch: Arch, layers: int, batch: int, room: int, dtype: Any) -> Cache:
    """An empty cache.

    Args:
        arch: the decoder.
        layers: layers whose keys and values are kept.
        batch: rows.
        room: tokens that fit into a row.
        dtype: dtype of keys and values.
    """
    shape = (layers, batch, room, arch.kv_heads, arch.head_dim)
    return Cache(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        positions=jnp.zeros((batch, room), jnp.float32),
        lengths=jnp.zeros((batch,), jnp.int32),
    )


def begun(k: Array, v: Array, positions: Array, lengths: Array, room: int) -> Cache:
    """A cache that holds its first tokens.

    Args:
        k: [L, B, T, K, h] keys of T tokens, rotated.
        v: [L, B, T, K, h] their values.
        positions: [B, T] their positions.
        lengths: [B], how many of a row's tokens are real; what is beyond is not kept.
        room: tokens that fit into a row, T or more.
    """
    real = jnp.arange(positions.shape[1])[None] < lengths[:, None]

    def laid(x: Array, axis: int) -> Array:
        shown = real.reshape((1,) * (axis - 1) + real.shape + (1,) * (x.ndim - axis - 1))
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, room - x.shape[axis])
        return jnp.pad(jnp.where(shown, x, 0), pad)

    at = laid(positions.astype(jnp.float32), 1)
    return Cache(laid(k, 2), laid(v, 2), at, lengths.astype(jnp.int32))


def columns(cache: Cache, lengths: Array, tokens: int) -> Array:
    """[B, T] columns of the next T tokens; beyond a row's `lengths` it is S, which is no column."""
    offset = jnp.arange(tokens, dtype=jnp.int32)[None]
    taken = cache.lengths[:, None] + offset
    return jnp.where(offset < lengths[:, None], taken, cache.k.shape[2])


def put_positions(cache: Cache, cols: Array, positions: Array) -> Array:
    """The cache's positions [B, S] with those of the next tokens [B, T] written at `cols`."""
    rows = jnp.arange(cols.shape[0])[:, None]
    return cache.positions.at[rows, cols].set(positions.astype(jnp.float32), mode="drop")


def put(stack: Array, layer: Array, cols: Array, new: Array) -> Array:
    """Writes a layer's new keys or values into the stack.

    Args:
        stack: [L, B, S, K, h] keys or values.
        layer: index of the layer.
        cols: [B, T] columns of the new tokens; S is dropped.
        new: [B, T, K, h] keys or values of the new tokens.
    """
    rows = jnp.arange(cols.shape[0])[:, None]
    return stack.at[layer, rows, cols].set(new.astype(stack.dtype), mode="drop")


def as_prefix(arch: Arch, cache: Cache) -> KV:
    """The cached tokens as a K/V prefix: the keys before RoPE, with their absolute positions."""
    cos, sin = angles(arch, cache.positions)
    layers = cache.k.shape[0]
    flat = rearrange(cache.k, "l b ... -> (l b) ...")
    cos, sin = (repeat(x, "b ... -> (l b) ...", l=layers) for x in (cos, sin))
    mask = jnp.arange(cache.k.shape[2])[None] < cache.lengths[:, None]
    k = rearrange(rotate(flat, cos, -sin), "(l b) ... -> l b ...", l=layers)
    return KV(k=k, v=cache.v, mask=mask, positions=cache.positions)
