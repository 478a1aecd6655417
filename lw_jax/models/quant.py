"""Frozen weights in 8 or 4 bits: storage, and an einsum that reads it.

int8 and float8 (e4m3, Micikevicius et al. 2022) keep one float32 scale per output channel; nf4
keeps codes of the 16-level NormalFloat table (Dettmers et al. 2023, QLoRA, appendix E) with one
scale per block of 64 values along the contracted axes. Nothing here is trained. Activations stay in
their own dtype, but for float8: it multiplies 8-bit floats by 8-bit floats, with a scale for each
token that is found as it goes, forward and in the activations' gradients.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lw_jax.errors import UserError
from lw_jax.types import Array

KINDS = ("int8", "nf4", "float8")
BLOCK = 64
FLOAT8 = jnp.float8_e4m3fn
_FLOAT8_MAX = float(jnp.finfo(FLOAT8).max)
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=np.float32,
)


@struct.dataclass
class QuantArray:
    """A weight W [..., *fan_in, *fan_out] kept in few bits.

    Leading axes (the layer stack) are free.

    Attributes:
        codes: int8 of W's own shape; for nf4 uint8 [..., prod(fan_in)/2, *fan_out], two codes in a
            byte; for float8 [..., *fan_out, *fan_in], as the products of 8-bit floats want it.
        scale: float32 [..., 1s, *fan_out], or for nf4 [..., blocks, *fan_out].
        fan_in: sizes of the contracted axes, static.
        fan_out: number of axes that are not contracted, static.
        kind: one of `KINDS`, static.
    """

    codes: Array
    scale: Array
    fan_in: tuple[int, ...] = struct.field(pytree_node=False)
    fan_out: int = struct.field(pytree_node=False)
    kind: str = struct.field(pytree_node=False)


def quantise(w: Array, fan_in: int, kind: str) -> QuantArray:
    """Stores a weight in few bits.

    Args:
        w: [*fan_in, *fan_out].
        fan_in: number of its leading, contracted axes.
        kind: one of `KINDS`.
    """
    ins, outs = w.shape[:fan_in], w.shape[fan_in:]
    w = w.astype(jnp.float32)
    if kind == "float8":
        axes = tuple(range(fan_in))
        scale = jnp.maximum(jnp.max(jnp.abs(w), axis=axes, keepdims=True), 1e-12) / _FLOAT8_MAX
        codes = jnp.moveaxis(w / scale, axes, tuple(range(-fan_in, 0))).astype(FLOAT8)
        return QuantArray(codes, scale, ins, len(outs), kind)
    if kind == "int8":
        axes = tuple(range(fan_in))
        scale = jnp.maximum(jnp.max(jnp.abs(w), axis=axes, keepdims=True), 1e-12) / 127
        codes = jnp.round(w / scale).astype(jnp.int8)
        return QuantArray(codes, scale, ins, len(outs), kind)
    if kind != "nf4":
        raise UserError(f"weights of kind {kind!r} are not known; choose from {', '.join(KINDS)}")
    block = block_size(math.prod(ins))
    blocks = w.reshape(-1, block, *outs)
    scale = jnp.maximum(jnp.max(jnp.abs(blocks), axis=1), 1e-12)
    middles = jnp.asarray((NF4[1:] + NF4[:-1]) / 2)
    levels = jnp.searchsorted(middles, blocks / scale[:, None]).astype(jnp.uint8)
    pairs = levels.reshape(math.prod(ins) // 2, 2, *outs)
    return QuantArray(pairs[:, 0] | (pairs[:, 1] << 4), scale, ins, len(outs), kind)


def block_size(fan_in: int) -> int:
    """Number of values that share an nf4 scale: `BLOCK`, or else the largest even divisor below."""
    fits = [size for size in range(2, BLOCK + 1, 2) if fan_in % size == 0]
    if not fits:
        raise UserError(f"a weight with {fan_in} inputs is odd and cannot be stored as nf4")
    return fits[-1]


def dequantise(w: QuantArray, dtype: Any) -> Array:
    """The weight [*fan_in, *fan_out] that the codes stand for (no leading axes)."""
    if w.kind == "float8":
        count = len(w.fan_in)
        back = jnp.moveaxis(w.codes, tuple(range(-count, 0)), tuple(range(count)))
        return (back.astype(jnp.float32) * w.scale).astype(dtype)
    if w.kind == "int8":
        return (w.codes.astype(jnp.float32) * w.scale).astype(dtype)
    outs = w.codes.shape[1:]
    levels = jnp.stack([w.codes & 15, w.codes >> 4], axis=1)
    values = jnp.asarray(NF4)[levels].reshape(w.scale.shape[0], -1, *outs)
    return (values * w.scale[:, None]).reshape(*w.fan_in, *outs).astype(dtype)


def einsum(spec: str, x: Array, w: Array | QuantArray, out: Any = None) -> Array:
    """`jnp.einsum(spec, x, w)` for a plain or stored weight.

    An int8 weight is multiplied as it is stored, and the output is scaled: exact, because there is
    one scale for each output channel.

    Args:
        spec: letters of the axes.
        x: activations.
        w: plain or stored weight.
        out: dtype of the result; None: the dtype of x.
    """
    if not isinstance(w, QuantArray):
        if w.dtype != x.dtype:  # trained in float32: its gradient takes no rounded cotangent
            return jnp.einsum(spec, x, w.astype(x.dtype), preferred_element_type=out or x.dtype)
        return product(spec, x, w, out or x.dtype)
    if w.kind == "float8":
        return _float8(spec, out or x.dtype, w, x)
    if w.kind == "int8":
        raw = product(spec, x, w.codes.astype(x.dtype), jnp.float32)
        scale = w.scale.reshape((1,) * (raw.ndim - w.fan_out) + w.scale.shape[-w.fan_out :])
        return (raw * scale).astype(out or x.dtype)
    return product(spec, x, dequantise(w, x.dtype), out or x.dtype)


def product(spec: str, x: Array, w: Array, out: Any) -> Array:
    """`jnp.einsum(spec, x, w)` in the dtype `out`, of operands of one dtype.

    Where `out` is wider than they are, the cotangent is rounded to theirs: left to itself, the
    backward product would be one of wide operands, with a wide copy of the weight.
    """
    if jnp.dtype(out).itemsize <= x.dtype.itemsize:
        return jnp.einsum(spec, x, w, preferred_element_type=out)
    if math.prod(x.shape) == x.shape[-1] and spec[1] != ",":
        # Of one row alone, XLA for GPUs makes a wide copy of the whole weight.
        return _widened(spec, out, jnp.concatenate([x, x]), w)[:1]
    return _widened(spec, out, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _widened(spec: str, out: Any, x: Array, w: Array) -> Array:
    return jnp.einsum(spec, x, w, preferred_element_type=out)


def _forward(spec: str, out: Any, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _widened(spec, out, x, w), (x, w)


def _backward(
    spec: str, out: Any, held: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, w = held
    operands, _, result = spec.partition("->")
    of_x, _, of_w = operands.partition(",")
    narrow = cotangent.astype(x.dtype)
    return (
        jnp.einsum(f"{result},{of_w}->{of_x}", narrow, w, preferred_element_type=x.dtype),
        jnp.einsum(f"{of_x},{result}->{of_w}", x, narrow, preferred_element_type=w.dtype),
    )


_widened.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _float8(spec: str, out: Any, w: QuantArray, x: Array) -> Array:
    """einsum of 8-bit floats, in the dtype `out`."""
    return _float8_forward(spec, out, w, x)[0]


def _float8_forward(
    spec: str, out: Any, w: QuantArray, x: Array
) -> tuple[Array, tuple[QuantArray, Array]]:
    of_x, of_w, result = _letters(spec)
    ins, outs = of_w[: len(w.fan_in)], of_w[len(w.fan_in) :]
    codes, scale = _narrowed(x, [of_x.index(axis) for axis in ins])
    raw = jnp.einsum(f"{of_x},{outs}{ins}->{result}", codes, w.codes, preferred_element_type=out)
    rows = scale.reshape(*(n for n in scale.shape[: raw.ndim - len(outs)]), *(1,) * len(outs))
    scales = rows * w.scale.reshape((1,) * (raw.ndim - len(outs)) + w.scale.shape[len(ins) :])
    nothing = jnp.zeros((0,), x.dtype)  # only says the dtype
    return (raw.astype(jnp.float32) * scales).astype(out), (w, nothing)


def _float8_backward(
    spec: str, out: Any, held: tuple[QuantArray, Array], cotangent: Array
) -> tuple[None, Array]:
    w, like = held
    of_x, of_w, result = _letters(spec)
    ins, outs = of_w[: len(w.fan_in)], of_w[len(w.fan_in) :]
    by_channel = w.scale.reshape((1,) * (len(result) - len(outs)) + w.scale.shape[len(ins) :])
    scaled = cotangent.astype(jnp.float32) * by_channel
    codes, scale = _narrowed(scaled, [result.index(axis) for axis in outs])
    raw = jnp.einsum(
        f"{result},{outs}{ins}->{of_x}", codes, w.codes, preferred_element_type=like.dtype
    )
    rows = scale.reshape(*scale.shape[: raw.ndim - len(ins)], *(1,) * len(ins))
    return None, (raw.astype(jnp.float32) * rows).astype(like.dtype)


_float8.defvjp(_float8_forward, _float8_backward)


def _letters(spec: str) -> tuple[str, str, str]:
    """Axes of activations, weight and result; of the activations the contracted ones are last."""
    operands, _, result = spec.partition("->")
    of_x, _, of_w = operands.partition(",")
    return of_x, of_w, result


def _narrowed(x: Array, axes: list[int]) -> tuple[Array, Array]:
    """x as 8-bit floats, and the scale of each token, with 1 in the place of the axes."""
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=tuple(axes), keepdims=True)
    scale = jnp.maximum(largest, 1e-30) / _FLOAT8_MAX
    return (wide / scale).astype(FLOAT8), scale


def take_layer(stack: Any, layer: Array | int) -> Any:
    """One layer of a tree of stacked weights, plain or quantised."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), stack)
