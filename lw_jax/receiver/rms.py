"""RMS of a frozen receiver on real text: of its embeddings, and of its keys and values per layer.

A bridge starts at these (docs/design.md section 12: key and value heads at the receiver's own RMS;
fault 7 of docs/faults.md: soft tokens 33 to 460 times too loud).
"""

from __future__ import annotations

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


@jax.jit
def _squares(model: FrozenDecoder, ids: Array, lengths: Array) -> tuple[Array, Array, Array]:
    """Mean squares over real tokens: embeddings [], keys before RoPE [L], values [L]."""
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
    real = (index < lengths[:, None]).astype(jnp.float32)
    cos, sin = angles(arch, index)

    def mean_square(x: Array) -> Array:
        square = rearrange(jnp.square(x.astype(jnp.float32)), "b t ... -> b t (...)").mean(axis=-1)
        return jnp.sum(square * real) / jnp.sum(real)

    def layer(i: Array | int, tap: Array) -> tuple[Array, Array]:
        w = layer_of(params, i)
        _, k, v = heads(arch, w, rms_norm(tap, w["attn_norm"], arch.norm_eps), cos, sin, None, None)
        return mean_square(k), mean_square(v)

    if is_apart(params):
        assert out.taps is not None
        each = [layer(i, out.taps[i]) for i in range(layers)]
        keys, values = (jnp.stack(x) for x in zip(*each, strict=True))
    else:
        keys, values = jax.lax.map(lambda x: layer(*x), (jnp.arange(layers), out.taps))
    return mean_square(h), keys, values


def measure_rms(model: FrozenDecoder, ids: Array, lengths: Array) -> ModelDims:
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
