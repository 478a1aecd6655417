"""A frozen receiver on real text: the RMS of its embeddings, its keys and values of every layer.

A bridge starts at these (docs/design.md section 12: key and value heads at the receiver's own RMS;
fault 7 of docs/faults.md: soft tokens 33 to 460 times too loud).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from lw_jax.errors import UserError
from lw_jax.models.apart import is_apart, layer_of
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.dims import ModelDims
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.layer import heads, rms_norm
from lw_jax.models.params import depth
from lw_jax.models.rope import angles
from lw_jax.types import Array

TAPS = 2**30
"""Bytes of the streams that are held at once: rows are read a few at a time."""


def _by_layer(
    model: FrozenDecoder, ids: Array, lengths: Array, of: Callable[[Array, Array], Any]
) -> Any:
    """What is made of the keys [B, T, K, h] before RoPE and values of texts, stacked over layers.

    Args:
        model: the receiver.
        ids: [B, T] the texts.
        lengths: [B] their tokens.
        of: from keys and values of a layer to a tree of arrays.
    """
    arch, params = model.arch, model.params
    layers = depth(params)
    h = embed_tokens(params, ids)
    index = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    out = run(
        arch,
        params,
        h,
        positions=index,
        lengths=lengths,
        taps=tuple(range(layers)),
        impl=model.attention,
    )
    cos, sin = angles(arch, index)

    def layer(i: Array | int, tap: Array) -> Any:
        w = layer_of(params, i)
        _, k, v = heads(arch, w, rms_norm(tap, w["attn_norm"], arch.norm_eps), cos, sin, None, None)
        return of(k, v)

    if not is_apart(params):
        return jax.lax.map(lambda x: layer(*x), (jnp.arange(layers), out.taps))
    assert out.taps is not None
    each = [layer(i, out.taps[i]) for i in range(layers)]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


@jax.jit
def _squares(model: FrozenDecoder, ids: Array, lengths: Array) -> tuple[Array, Array, Array]:
    """Mean squares over real tokens: embeddings [], keys before RoPE [L], values [L]."""
    real = (jnp.arange(ids.shape[1])[None] < lengths[:, None]).astype(jnp.float32)

    def mean_square(x: Array) -> Array:
        square = rearrange(jnp.square(x.astype(jnp.float32)), "b t ... -> b t (...)").mean(axis=-1)
        return jnp.sum(square * real) / jnp.sum(real)

    keys, values = _by_layer(model, ids, lengths, lambda k, v: (mean_square(k), mean_square(v)))
    return mean_square(embed_tokens(model.params, ids)), keys, values


def keys_and_values(model: FrozenDecoder, head: Sequence[int], ids: Array, lengths: Array) -> Array:
    """Keys before RoPE and values of every layer for texts that follow a head.

    Args:
        model: the receiver.
        head: tokens that stand before every text.
        ids: [B, T] the texts.
        lengths: [B] their tokens.

    Returns:
        [B, T, L * 2 * K * h] float32: layers, in each keys and then values.
    """
    before = jnp.broadcast_to(jnp.asarray(head, ids.dtype)[None], (ids.shape[0], len(head)))
    whole = jnp.concatenate([before, ids], axis=1)
    found = _by_layer(model, whole, lengths + len(head), lambda k, v: jnp.stack([k, v], axis=2))
    own = found[:, :, len(head) :].astype(jnp.float32)
    return rearrange(own, "l b t s k h -> b t (l s k h)")


def measure_rms(
    model: FrozenDecoder, ids: Array | np.ndarray, lengths: Array | np.ndarray
) -> ModelDims:
    """Sizes and RMS of a receiver on texts ids [B, T] with lengths [B].

    Raises:
        UserError: the texts have no token.
    """
    arch = model.arch
    if not np.any(np.asarray(lengths)):
        raise UserError("layout.max_tokens: no token is left to measure a receiver on; raise it")
    a_row = arch.layers * ids.shape[1] * arch.width * model.params["embed"].dtype.itemsize
    once = max(1, TAPS // a_row)
    parts = [slice(i, i + once) for i in range(0, ids.shape[0], once)]
    counts = [int(np.sum(np.asarray(lengths[part]))) for part in parts]
    squares = [_squares(model, ids[p], lengths[p]) for p, n in zip(parts, counts, strict=True) if n]
    shares = np.asarray([n for n in counts if n], np.float32) / np.float32(sum(counts))
    embed, keys, values = (
        np.sqrt(sum(np.asarray(x) * share for x, share in zip(each, shares, strict=True)))
        for each in zip(*squares, strict=True)
    )
    return ModelDims(
        width=arch.width,
        layers=arch.layers,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        embed_rms=float(embed),
        key_rms=tuple(float(x) for x in keys),
        value_rms=tuple(float(x) for x in values),
        heads=arch.heads,
    )
