"""One decoder layer: RMS norm, rotary grouped-query attention, gated SiLU MLP.

Letters: B rows, T tokens, S keys, D width, H heads, K key/value heads, h head width, F MLP width.
Norms, RoPE and the softmax compute in float32; everything else in the dtype of the stream.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lw_jax.models.arch import Arch
from lw_jax.models.quant import einsum
from lw_jax.models.rope import rotate
from lw_jax.types import Array, Lora, PyTree

PRODUCTS = ("qkv", "q", "k", "v", "o", "gate_up", "gate", "up")
"""Names of the matrix products whose results the backward pass needs: weights are frozen, so it
needs no product's inputs. Of a layer they are D + 2 F + (H + 2 K) h numbers a token."""


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x [..., D] over its root mean square, times weight [D]; the dtype of x is kept."""
    wide = x.astype(jnp.float32)
    unit = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    scale = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + weight.shape)
    return (unit * scale).astype(x.dtype)


def stacked_slot(layers: tuple[int, ...], depth: int, index: Array) -> Array:
    """The place of layer `index` in a stack over `layers`; -1 where it is not among them."""
    table = [layers.index(i) if i in layers else -1 for i in range(depth)]
    return jnp.asarray(table, jnp.int32)[index]


def heads(
    arch: Arch,
    w: PyTree,
    x: Array,
    cos: Array,
    sin: Array,
    lora: Lora | None,
    slot: Array | int | None,
) -> tuple[Array, Array, Array]:
    """Queries [B, T, H, h] rotated, keys [B, T, K, h] not rotated, and values, of x [B, T, D].

    The weights of the three are one matrix, "qkv", or three. `slot` is the place of this layer in
    the stacks of `lora`, -1 where it is not edited.
    """
    joined: dict[str, Array] = {}
    if "qkv" in w:
        y = checkpoint_name(einsum("btd,dnh->btnh", x, w["qkv"]), "qkv")
        sizes = (arch.heads, arch.kv_heads, arch.kv_heads)
        joined = dict(zip("qkv", lax.split(y, sizes, axis=2), strict=True))

    def project(name: str) -> Array:
        y = joined[name] if joined else einsum("btd,dnh->btnh", x, w[name])
        if lora is not None and slot is not None and name in lora.a:
            y = y + _low_rank(lora, name, slot, x, y)
        if arch.qkv_bias:
            y = y + w[f"{name}_bias"].astype(x.dtype)[None, None]
        return y if joined else checkpoint_name(y, name)

    q, k, v = project("q"), project("k"), project("v")
    if arch.qk_norm:
        q, k = rms_norm(q, w["q_norm"], arch.norm_eps), rms_norm(k, w["k_norm"], arch.norm_eps)
    return rotate(q, cos, sin), k, v


def output(w: PyTree, mixed: Array, lora: Lora | None, slot: Array | int | None) -> Array:
    """The attention's contribution [B, T, D] from its mixed values [B, T, H, h]."""
    y = einsum("btnh,nhd->btd", mixed, w["o"])
    if lora is not None and slot is not None and "o" in lora.a:
        y = y + _low_rank(lora, "o", slot, rearrange(mixed, "b t h e -> b t (h e)"), y)
    return checkpoint_name(y, "o")


def mlp(w: PyTree, x: Array) -> Array:
    """down(silu(gate x) * up x), [B, T, D]; the weights of gate and up are one matrix, or two."""
    if "gate_up" in w:
        both = checkpoint_name(einsum("btd,dcf->btcf", x, w["gate_up"]), "gate_up")
        gate, up = (y[:, :, 0] for y in lax.split(both, (1, 1), axis=2))
        return einsum("btf,fd->btd", jax.nn.silu(gate) * up, w["down"])
    gate = jax.nn.silu(checkpoint_name(einsum("btd,df->btf", x, w["gate"]), "gate"))
    up = checkpoint_name(einsum("btd,df->btf", x, w["up"]), "up")
    return einsum("btf,fd->btd", gate * up, w["down"])


def _low_rank(lora: Lora, name: str, slot: Array | int, x: Array, like: Array) -> Array:
    """scale (x a) b shaped like the projection's output; zeros in a layer without an edit."""

    def edit(slot: Array | int) -> Array:
        a = lax.dynamic_index_in_dim(lora.a[name], slot, keepdims=False).astype(x.dtype)
        b = lax.dynamic_index_in_dim(lora.b[name], slot, keepdims=False).astype(x.dtype)
        low = jnp.einsum("btr,ro->bto", jnp.einsum("bti,ir->btr", x, a), b)
        return (low * jnp.asarray(lora.scale, x.dtype)).reshape(like.shape)

    if isinstance(slot, int):
        return edit(slot) if slot >= 0 else jnp.zeros_like(like)
    return lax.cond(slot >= 0, edit, lambda _: jnp.zeros_like(like), slot)
