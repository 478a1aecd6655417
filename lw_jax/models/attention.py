"""Scaled dot-product attention behind one signature.

`xla` is the reference and runs everywhere; `cudnn` is faster on NVIDIA GPUs for more than one query
(`benchmarks/attention.py`). `auto` in a config is one of the two, see `chosen`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from lw_jax.errors import UserError
from lw_jax.mesh import ways
from lw_jax.types import Array

IMPLS = ("xla", "cudnn")


@struct.dataclass
class Mask:
    """Which keys a query may see.

    Attributes:
        allowed: [B, 1, T, S] bool.
        lengths: [B], given only where `allowed` is exactly "causal, rows packed at the left with
            these lengths", which cudnn computes without a mask in memory; else None.
    """

    allowed: Array
    lengths: Array | None = None


def chosen(impl: str, mesh: Mesh, head_dim: int, *, dtype: Any, quant: str | None) -> str:
    """The implementation that a config's choice means for a decoder.

    `auto` is `cudnn` on NVIDIA GPUs from compute capability 8.0 on, in bfloat16, for head widths
    that it takes; not for weights of 4 bits, which it was not tried with, nor where the heads are
    split over the devices of a mesh: its partitioning rules ask for queries, keys and values that
    are split alike, and a mesh does not promise that.

    Args:
        impl: `auto`, `xla` or `cudnn`.
        mesh: the devices that it runs on.
        head_dim: width of a head.
        dtype: of the weights that are computed with.
        quant: how the matrices are stored, see `quant.KINDS`; None: in `dtype`.

    Returns:
        `xla` or `cudnn`.
    """
    if impl != "auto":
        return impl
    device = mesh.devices.flat[0]
    fits = jnp.dtype(dtype) == jnp.bfloat16 and head_dim <= 128 and head_dim % 8 == 0
    whole = ways(mesh, "heads") == 1 and quant != "nf4"
    return "cudnn" if fits and whole and capability(device) >= 8 else "xla"


def capability(device: Any) -> int:
    """The compute capability of an NVIDIA GPU, its whole part; 0 of another device. From 8 on cudnn
    has fused attention."""
    if device.platform not in ("gpu", "cuda"):
        return 0
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]  # ROCm's: "gfx942"
    return int(major) if major.isdigit() else 0


def check(impl: str, dtype: Any, head_dim: int) -> None:
    """Raises UserError, before anything is compiled, where `impl` cannot run."""
    if impl not in IMPLS:
        raise UserError(f"attention {impl!r} is not known; choose from {', '.join(IMPLS)}")
    if impl == "xla":
        return
    if jax.default_backend() != "gpu":
        raise UserError("attention cudnn needs an NVIDIA GPU; use xla here")
    if jnp.dtype(dtype) not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        raise UserError(f"attention cudnn needs bf16 or fp16, not {jnp.dtype(dtype)}; use xla")
    if head_dim > 128 or head_dim % 8:
        raise UserError(f"attention cudnn takes head widths of 8..128, not {head_dim}; use xla")


def attention(q: Array, k: Array, v: Array, mask: Mask, impl: str = "xla") -> Array:
    """softmax(q k / sqrt(h)) v, the softmax in float32; each key/value head serves H/K query heads.

    Args:
        q: [B, T, H, h] queries.
        k: [B, S, K, h] keys.
        v: [B, S, K, h] values.
        mask: which keys a query sees; a query that sees none returns the mean of v.
        impl: `xla` or `cudnn`.

    Returns:
        [B, T, H, h] in the dtype of q.
    """
    if impl == "xla" or q.shape[1] == 1:  # a decoding step takes cudnn longer
        return jax.nn.dot_product_attention(q, k, v, mask=mask.allowed, implementation="xla")
    return cudnn(q, k, v, mask)


def cudnn(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """`attention` by cudnn, for any number of queries; padded queries give 0.

    With a mask its backward pass for compute capability 9.0 is wrong at some sizes. Where the keys
    end 64 beyond a multiple of 128, the zeros that fill the last tile enter unmasked, as exp(0 -
    log-sum-exp): infinite for a query whose log-sum-exp is below -88.7, as some of Qwen2.5's are,
    and times zero NaN in the gradient; the output is right
    (https://github.com/NVIDIA/cudnn-frontend/pull/628). Of as many keys as queries only that is
    known, so that size is not used. With other numbers of keys (a prefix, a cache) it fails
    elsewhere too (issues/1072 there), so these have XLA's backward pass. By lengths in place of a
    mask cudnn masks what lies beyond.
    """
    t = q.shape[1]
    if mask.lengths is None and t != k.shape[1]:
        return _forward_alone(q, k, v, mask.allowed)
    if mask.lengths is None:
        more = _sound(t) - t
        q, k, v = (_longer(x, 1, more) for x in (q, k, v))
        # The idle queries see every key: where one sees none its weights may be NaN, and so the
        # gradients of all keys.
        allowed = _longer(_longer(mask.allowed, 3, more), 2, more, fill=True)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")
        return mixed[:, :t]
    q, k, v = (_longer(x, 1, t % 2) for x in (q, k, v))  # it trains only on even sizes
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=mask.lengths,
        key_value_seq_lengths=mask.lengths,
        implementation="cudnn",
    )
    # cudnn leaves padded queries undefined, and a NaN there would poison weight gradients.
    real = jnp.arange(q.shape[1])[None] < mask.lengths[:, None]
    return jnp.where(real[..., None, None], mixed, 0)[:, :t]


@jax.custom_vjp
def _forward_alone(q: Array, k: Array, v: Array, allowed: Array) -> Array:
    """`cudnn` with a mask, with the gradients of XLA's attention."""
    t, s = q.shape[1] % 2, k.shape[1] % 2
    q, k, v = _longer(q, 1, t), _longer(k, 1, s), _longer(v, 1, s)
    allowed = _longer(_longer(allowed, 3, s), 2, t, fill=True)
    mixed = jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")
    return mixed[:, : mixed.shape[1] - t]


def _forward(q: Array, k: Array, v: Array, allowed: Array) -> tuple[Array, tuple[Array, ...]]:
    return _forward_alone(q, k, v, allowed), (q, k, v, allowed)


def _backward(kept: tuple[Array, ...], given: Array) -> tuple[Array | None, ...]:
    *qkv, allowed = kept
    _, pull = jax.vjp(lambda q, k, v: attention(q, k, v, Mask(allowed)), *qkv)
    return (*pull(given), None)


_forward_alone.defvjp(_forward, _backward)


def _sound(size: int) -> int:
    """The next number of queries and keys at which cudnn's backward pass with a mask is sound."""
    size += size % 2  # it takes even ones only
    return size + 8 if size % 128 == 64 else size


def _longer(x: Array, axis: int, more: int, fill: float = 0) -> Array:
    """Adds so many entries of `fill` at the end of an axis."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, more)
    return jnp.pad(x, pad, constant_values=fill)
