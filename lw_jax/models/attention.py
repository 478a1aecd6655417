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
    """`attention` by cudnn, for any number of queries; padded queries give 0."""
    # It trains only on even T and S, so an idle query and a masked column are added. The idle query
    # sees every key: where it sees none its weights may be NaN, and so the gradients of all keys.
    t = q.shape[1]
    q, k, v = _even(q, 1), _even(k, 1), _even(v, 1)
    if mask.lengths is None:
        allowed = _even(_even(mask.allowed, 3), 2, fill=True)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")
        return mixed[:, :t]
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


def _even(x: Array, axis: int, fill: float = 0) -> Array:
    """Pads one axis with an entry, of zeros or of `fill`, where its size is odd."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, x.shape[axis] % 2)
    return jnp.pad(x, pad, constant_values=fill)
