"""The static key/value cache of a decoder: rows of different lengths, each packed at the left."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import struct

from lw_jax.models.arch import Arch
from lw_jax.models.rope import angles, rotate
from lw_jax.types import KV, Array

Columns: TypeAlias = Array | tuple[Array, ...]
"""Keys or values of all layers: stacked [L, B, S, K, h], or one array [B, S, K, h] a layer. One
array a layer is written in place; of a stack, a layer is copied out to be read."""


@struct.dataclass
class Cache:
    """Keys (rotated) and values of the tokens run so far.

    Attributes:
        k: keys [B, S, K, h] of L layers, room for S tokens in a row.
        v: their values.
        positions: [B, S] float32 positions of the tokens.
        lengths: [B] int32, how many columns of a row are filled.
    """

    k: Columns
    v: Columns
    positions: Array
    lengths: Array


def new_cache(
    arch: Arch, layers: int, batch: int, room: int, dtype: Any, apart: bool = False
) -> Cache:
    """An empty cache.

    Args:
        arch: the decoder.
        layers: layers whose keys and values are kept.
        batch: rows.
        room: tokens that fit into a row.
        dtype: dtype of keys and values.
        apart: one array a layer, for a decoder whose layers are apart.
    """
    shape = (batch, room, arch.kv_heads, arch.head_dim)

    def empty() -> Columns:
        if apart:
            return tuple(jnp.zeros(shape, dtype) for _ in range(layers))
        return jnp.zeros((layers, *shape), dtype)

    return Cache(
        k=empty(),
        v=empty(),
        positions=jnp.zeros((batch, room), jnp.float32),
        lengths=jnp.zeros((batch,), jnp.int32),
    )


def begun(k: Columns, v: Columns, positions: Array, lengths: Array, room: int) -> Cache:
    """A cache that holds its first tokens.

    Args:
        k: keys of T tokens, rotated, stacked or a layer at a time.
        v: their values.
        positions: [B, T] their positions.
        lengths: [B], how many of a row's tokens are real; what is beyond is not kept.
        room: tokens that fit into a row, T or more.
    """
    real = jnp.arange(positions.shape[1])[None] < lengths[:, None]

    def laid(x: Array) -> Array:
        axis = 1 if x.ndim < 5 else 2
        shown = real.reshape((1,) * (axis - 1) + real.shape + (1,) * (x.ndim - axis - 1))
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, room - x.shape[axis])
        return jnp.pad(jnp.where(shown, x, 0), pad)

    at = laid(positions.astype(jnp.float32))
    k, v = jax.tree.map(laid, (k, v))
    return Cache(k, v, at, lengths.astype(jnp.int32))


def repeated(cache: Cache, times: int) -> Cache:
    """A cache whose rows stand so many times, one beside the other."""
    again: Cache = jax.tree.map(lambda x: jnp.repeat(x, times, 1 if x.ndim == 5 else 0), cache)
    return again


def columns(cache: Cache, lengths: Array, tokens: int) -> Array:
    """[B, T] columns of the next T tokens; beyond a row's `lengths` it is S, which is no column."""
    offset = jnp.arange(tokens, dtype=jnp.int32)[None]
    taken = cache.lengths[:, None] + offset
    return jnp.where(offset < lengths[:, None], taken, cache.positions.shape[1])


def put_positions(cache: Cache, cols: Array, positions: Array) -> Array:
    """The cache's positions [B, S] with those of the next tokens [B, T] written at `cols`."""
    rows = jnp.arange(cols.shape[0])[:, None]
    return cache.positions.at[rows, cols].set(positions.astype(jnp.float32), mode="drop")


def put(kept: Array, layer: Array | None, cols: Array, new: Array) -> Array:
    """Writes a layer's new keys or values.

    Args:
        kept: [L, B, S, K, h] keys or values of all layers, or [B, S, K, h] of this one.
        layer: index of the layer in the stack; None: `kept` is of this layer.
        cols: [B, T] columns of the new tokens; S is dropped.
        new: [B, T, K, h] keys or values of the new tokens.
    """
    rows = jnp.arange(cols.shape[0])[:, None]
    at = (rows, cols) if layer is None else (layer, rows, cols)
    return kept.at[at].set(new.astype(kept.dtype), mode="drop")


def as_prefix(arch: Arch, cache: Cache) -> KV:
    """The cached tokens as a K/V prefix: the keys before RoPE, with their absolute positions."""
    cos, sin = angles(arch, cache.positions)
    keys, values = (jnp.stack(x) if isinstance(x, tuple) else x for x in (cache.k, cache.v))
    layers = keys.shape[0]
    flat = rearrange(keys, "l b ... -> (l b) ...")
    cos, sin = (repeat(x, "b ... -> (l b) ...", l=layers) for x in (cos, sin))
    mask = jnp.arange(keys.shape[2])[None] < cache.lengths[:, None]
    k = rearrange(rotate(flat, cos, -sin), "(l b) ... -> l b ...", l=layers)
    return KV(k=k, v=values, mask=mask, positions=cache.positions)
