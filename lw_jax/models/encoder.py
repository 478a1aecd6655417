"""The frozen sentence encoder: tokens in, states that have read the whole text out.

BERT (Devlin et al. 2019): every token sees all others; a LayerNorm follows each residual. One scan
over layer indices, as in the decoder. LayerNorm and the softmax compute in float32, everything
else in the dtype of the embedding table.

Letters: B rows, T tokens, D width, H heads, h head width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from lw_jax.errors import UserError
from lw_jax.models import attention as attend
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.models.params import depth
from lw_jax.models.quant import einsum, take_layer
from lw_jax.models.split import embedding_table, gathered
from lw_jax.types import Array, PyTree

_tanh_gelu: Callable[[Array], Array] = partial(jax.nn.gelu, approximate=True)
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
}


@struct.dataclass
class EncoderRun:
    """What `run` gives.

    Attributes:
        h: [B, T, D] states after the last layer that was run.
        taps: [n, B, T, D] states after the layers asked for, in that order; None: none.
    """

    h: Array
    taps: Array | None


def run(
    arch: EncoderArch,
    params: PyTree,
    ids: Array,
    lengths: Array,
    *,
    stop: int | None = None,
    taps: tuple[int, ...] = (),
    impl: str = "xla",
) -> EncoderRun:
    """Reads texts up to layer `stop`.

    Args:
        arch: the encoder.
        params: the tree of `params.abstract`; stacked at least up to `stop`.
        ids: [B, T] int tokens, [CLS] and [SEP] included, rows packed at the left; a token that is
            not in the vocabulary gives NaN.
        lengths: [B] int, how many of the T tokens of each row are real, at most
            `arch.max_positions`. No real token sees the padding beyond, whose states mean nothing.
        stop: number of layers to run, 0 for the embeddings alone; None: all that are stacked.
        taps: numbers of layers, 0 to `stop`, after which the states are also returned.
        impl: attention implementation, see `attention.check`.

    Raises:
        UserError: a tap or `stop` beyond the layers that are stacked.
    """
    there = depth(params)
    stop = there if stop is None else stop
    if not 0 <= stop <= there:
        raise UserError(f"cannot run {stop} layers of the encoder: {there} are loaded")
    if any(not 0 <= tap <= stop for tap in taps):
        raise UserError(f"taps {list(taps)} are not all between layers 0 and {stop}")
    h = embeddings(arch, params, ids)
    # A row that was left out has no token; it sees one of its padding.
    seen = jnp.arange(ids.shape[1])[None] < jnp.maximum(1, lengths)[:, None]
    square = (ids.shape[0], 1, ids.shape[1], ids.shape[1])
    mask = attend.Mask(jnp.broadcast_to(seen[:, None, None], square))

    def body(h: Array, layer: Array) -> tuple[Array, Array | None]:
        after = _layer(arch, gathered(take_layer(params["layers"], layer)), h, mask, impl)
        return after, after if taps else None

    last, each = lax.scan(body, h, jnp.arange(stop, dtype=jnp.int32)) if stop else (h, None)
    if not taps:
        return EncoderRun(last, None)
    every = h[None] if each is None else jnp.concatenate([h[None], each])
    return EncoderRun(last, every[jnp.asarray(taps)])


def embeddings(arch: EncoderArch, params: PyTree, ids: Array) -> Array:
    """[B, T, D] input of the layers: token, position 0, 1, ... and type 0, through LayerNorm."""
    h = embedding_table(params).at[ids].get(mode="fill", fill_value=jnp.nan)
    # Columns beyond the last position hold padding only.
    at = jnp.minimum(jnp.arange(ids.shape[1]), arch.max_positions - 1)
    h = h + gathered(params["position"])[at][None] + gathered(params["type"])[0][None, None]
    return layer_norm(h, params["embed_norm"], params["embed_norm_bias"], arch.norm_eps)


def layer_norm(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    """x [..., D] centred, divided by its deviation, times gain [D], plus bias [D]; in x's dtype."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    unit = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    row = (1,) * (x.ndim - 1) + gain.shape
    scaled = unit * gain.astype(jnp.float32).reshape(row) + bias.astype(jnp.float32).reshape(row)
    return scaled.astype(x.dtype)


def _layer(arch: EncoderArch, w: PyTree, h: Array, mask: attend.Mask, impl: str) -> Array:
    """One layer: attention, then MLP, each added to its input and normed."""

    def linear(spec: str, x: Array, name: str) -> Array:
        return einsum(spec, x, w[name]) + w[f"{name}_bias"].astype(x.dtype)[None, None]

    def added(h: Array, more: Array, norm: str) -> Array:
        return layer_norm(h + more, w[norm], w[f"{norm}_bias"], arch.norm_eps)

    q, k, v = (linear("btd,dnh->btnh", h, name) for name in ("q", "k", "v"))
    mixed = attend.attention(q, k, v, mask, impl)
    h = added(h, linear("btnh,nhd->btd", mixed, "o"), "attn_norm")
    inner = _ACTIVATIONS[arch.activation](linear("btd,df->btf", h, "up"))
    return added(h, linear("btf,fd->btd", inner, "down"), "mlp_norm")
