"""Codecs of latent slots: how the floats of one latent become bytes, and how many.

`float32`, `float16` and `bfloat16` hold the value. `int8`, `int6`, `int4` hold symmetric codes of k
bits with one bfloat16 scale per slot. All decode to float32. Encoding a decoded latent gives the
same bytes, so what a bottleneck has already rounded to the grid crosses the wire unchanged.

`codes` holds the discrete codes of a slot as one number in mixed radix, in as few bits as possible.
The number of values of each code is not part of the bytes: the bridge at both ends knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from lw_jax.errors import UserError

Slots = NDArray[Any]
"""[M, d] float32; of the codec `codes` [M, n] int32."""
CODES = "codes"


@dataclass(frozen=True)
class Codec:
    """One codec.

    Attributes:
        tag: the codec's number in the wire's header.
        pack: slots [M, d] -> bytes.
        unpack: (bytes, M, d) -> slots.
        nbytes: (M, d) -> number of bytes.
    """

    tag: int
    pack: Callable[[Slots], bytes]
    unpack: Callable[[bytes, int, int], Slots]
    nbytes: Callable[[int, int], int]


def _pack_float(dtype: Any, slots: Slots) -> bytes:
    with np.errstate(over="ignore"):  # checked below, in words
        coded = slots.astype(dtype)
    if np.isinf(coded).any() and np.isfinite(slots).all():
        name = np.dtype(dtype).name
        raise UserError(f"wire: a slot does not fit into {name}; send it as float32")
    return coded.tobytes()


def _unpack_float(dtype: Any, data: bytes, m: int, d: int) -> Slots:
    with np.errstate(invalid="ignore"):  # of a NaN; the packet is refused for it
        return np.frombuffer(data, dtype).reshape(m, d).astype(np.float32)


def _truncated(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x rounded towards zero to bfloat16.

    The result is never above x, so that the largest code is the limit, and encoding again finds the
    same scale.
    """
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _pack_int(bits: int, slots: Slots) -> bytes:
    x = slots
    if not np.isfinite(x).all():
        raise UserError("wire: a slot is not finite; integer codecs cannot hold it")
    limit = 2 ** (bits - 1) - 1
    scale = _truncated(np.abs(x).max(1, initial=0.0) / np.float32(limit))
    # In float32 and by the reciprocal, as XLA divides: halves round as `lw_jax.wire.rounding` does.
    normal = (scale >= np.finfo(np.float32).tiny)[:, None]
    once = np.float32(1) / np.where(normal, scale[:, None], np.float32(1))
    step = np.where(scale > 0, scale, 1.0).astype(np.float64)[:, None]
    exact = np.where(normal, x * once, x / step)
    codes = np.clip(np.rint(exact), -limit, limit).astype(np.int64) + limit
    codes[scale == 0] = limit
    planes = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    return (scale.view(np.uint32) >> 16).astype("<u2").tobytes() + np.packbits(
        planes.astype(np.uint8)
    ).tobytes()


def _unpack_int(bits: int, data: bytes, m: int, d: int) -> Slots:
    high = np.frombuffer(data[: 2 * m], "<u2").astype(np.uint32)
    if (high & 0x7F80 == 0x7F80).any():
        raise UserError("wire: a slot's scale is not finite")
    scale = (high << np.uint32(16)).view(np.float32).astype(np.float64)
    planes = np.unpackbits(np.frombuffer(data[2 * m :], np.uint8), count=m * d * bits)
    codes = (planes.reshape(m, d, bits).astype(np.int64) << np.arange(bits)).sum(-1)
    with np.errstate(over="ignore"):  # the packet is refused for it
        return ((codes - (2 ** (bits - 1) - 1)) * scale[:, None]).astype(np.float32)


def _pack_codes(levels: tuple[int, ...], slots: Slots) -> bytes:
    if slots.shape[1] != len(levels) or (slots >= levels).any():
        raise UserError(f"wire: codes of {len(levels)} levels {list(levels)} were expected")
    size, bits = _code_bits(levels)
    # A masked slot has the code -1; the value written instead is not read.
    numbers = [
        reduce(lambda n, pair: n * pair[0] + pair[1], zip(levels, row, strict=True), 0)
        for row in np.maximum(slots, 0).tolist()
    ]
    raw = np.frombuffer(b"".join(n.to_bytes(size, "little") for n in numbers), np.uint8)
    planes = np.unpackbits(raw.reshape(-1, size), axis=1, bitorder="little")[:, :bits]
    return np.packbits(planes, bitorder="little").tobytes()


def _unpack_codes(levels: tuple[int, ...], data: bytes, m: int, n: int) -> Slots:
    bits = _code_bits(levels)[1]
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=m * bits, bitorder="little")
    raw = np.packbits(planes.reshape(m, bits), axis=1, bitorder="little")
    slots = np.empty((m, n), np.int32)
    for row, line in zip(slots, raw, strict=True):
        number = int.from_bytes(line.tobytes(), "little")
        for i in range(n - 1, -1, -1):
            number, row[i] = divmod(number, levels[i])
        if number:
            raise UserError("wire: a slot's codes are beyond the levels of this bridge")
    return slots


def _code_bits(levels: tuple[int, ...]) -> tuple[int, int]:
    """Bytes and bits that hold any number below the product of the levels."""
    bits = (math.prod(levels) - 1).bit_length()
    return (bits + 7) // 8, bits


def _float(tag: int, dtype: Any) -> Codec:
    size = np.dtype(dtype).itemsize
    return Codec(
        tag, partial(_pack_float, dtype), partial(_unpack_float, dtype), lambda m, d: m * d * size
    )


def _int(tag: int, bits: int) -> Codec:
    return Codec(
        tag,
        partial(_pack_int, bits),
        partial(_unpack_int, bits),
        lambda m, d: 2 * m + (m * d * bits + 7) // 8,
    )


CODECS: dict[str, Codec] = {
    "float32": _float(0, "<f4"),
    "float16": _float(1, "<f2"),
    "bfloat16": _float(2, bfloat16),
    "int8": _int(3, 8),
    "int6": _int(4, 6),
    "int4": _int(5, 4),
}


CODES_TAG = 6


def codec(name: str, levels: tuple[int, ...] = ()) -> Codec:
    """The codec with a name.

    Args:
        name: one of `CODECS`, or `codes`.
        levels: for `codes`, the number of values of each code in a slot.

    Raises:
        UserError: unknown name; lists the known ones.
    """
    if name == CODES:
        if not levels:
            raise UserError("wire: these are codes; only a bridge with their levels can read them")
        bits = _code_bits(levels)[1]
        return Codec(
            CODES_TAG,
            partial(_pack_codes, levels),
            partial(_unpack_codes, levels),
            lambda m, n: (m * bits + 7) // 8,
        )
    if name not in CODECS:
        raise UserError(f"wire: unknown codec {name!r}; one of {', '.join(CODECS)}")
    return CODECS[name]
