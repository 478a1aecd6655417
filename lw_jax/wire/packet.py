"""One latent as bytes, and back, exactly: all that crosses the wire (docs/design.md section 8).

    magic "LWJX" | version | codec | flags | M | d | crc32      16 bytes
    [fingerprint of the bridge, 8] [owner of each slot, 2 M] [span, 4]
    mask, one bit per slot | slots in the codec

Fingerprint, owners and span are present only if the latent has them. Numbers are little-endian. A
bridge with discrete codes sends those: d is then the number of codes in a slot, `slots` the codes,
and the bridge at the other end makes the slots of them (`lw_jax.bridge.bridge.Bridge.from_wire`).
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lw_jax.errors import UserError
from lw_jax.types import SHARED, Latent
from lw_jax.wire.codecs import CODECS, CODES, CODES_TAG, codec

_MAGIC, _VERSION = b"LWJX", 1
_HEADER = struct.Struct("<4sBBBxHHI")
_FINGERPRINT, _OWNERS, _SPAN = 1, 2, 4


class Message(NamedTuple):
    """The contents of the bytes.

    Attributes:
        latent: a latent of one row, with numpy leaves; with the codec `codes` its slots are codes
            [1, M, n] int32.
        codec: name of the codec.
        fingerprint: 8 bytes that name the bridge; None: it is not named.
    """

    latent: Latent
    codec: str
    fingerprint: bytes | None


def to_bytes(
    latent: Latent,
    *,
    codec_name: str = "float32",
    levels: tuple[int, ...] = (),
    mark: bytes | None = None,
) -> bytes:
    """The bytes of a latent of one row.

    Args:
        latent: slots [1, M, d] or codes [1, M, n], mask [1, M], span [1] or None.
        codec_name: one of `lw_jax.wire.codecs.CODECS`, or `codes`.
        levels: for `codes`, the number of values of each code in a slot.
        mark: 8 bytes that name the bridge, so that another bridge refuses them.

    Raises:
        UserError: the latent has more than one row, or does not fit the codec.
    """
    dtype = np.int32 if codec_name == CODES else np.float32
    slots, mask = np.asarray(latent.slots, dtype), np.asarray(latent.mask, bool)
    if slots.ndim != 3 or slots.shape[0] != 1:
        raise UserError(f"wire: one text at a time, slots [1, M, d]; got {list(slots.shape)}")
    _, m, d = slots.shape
    flags, extra = 0, b""
    if mark is not None:
        flags, extra = flags | _FINGERPRINT, extra + struct.pack("8s", mark)
    if latent.owner:
        flags, extra = flags | _OWNERS, extra + np.asarray(latent.owner, "<i2").tobytes()
    if latent.span is not None:
        flags, extra = flags | _SPAN, extra + np.asarray(latent.span, "<f4").tobytes()
    coding = codec(codec_name, levels)
    body = extra + np.packbits(mask[0]).tobytes() + coding.pack(slots[0])
    crc = zlib.crc32(body)
    return _HEADER.pack(_MAGIC, _VERSION, coding.tag, flags, m, d, crc) + body


def from_bytes(data: bytes, levels: tuple[int, ...] = ()) -> Message:
    """The latent that `to_bytes` wrote.

    Args:
        data: the bytes.
        levels: number of values of each code of the bridge at this end; (): it has no codes.

    Raises:
        UserError: the bytes are no latent, of another version, cut short or damaged, or codes that
            this end cannot read.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise UserError(f"wire: these {len(data)} bytes are no lw_jax latent")
    _, version, tag, flags, m, d, crc = _HEADER.unpack_from(data)
    named = {c.tag: name for name, c in CODECS.items()} | {CODES_TAG: CODES}
    if version != _VERSION or tag not in named:
        raise UserError(
            f"wire: version {version}, codec {tag} is not known here; this is version {_VERSION}"
        )
    body, name = data[_HEADER.size :], named[tag]
    if name == CODES and d != len(levels):
        raise UserError(f"wire: {d} codes a slot, where the bridge at this end has {len(levels)}")
    sizes = _sizes(name, m, d, flags, levels)
    if len(body) != sum(sizes):
        raise UserError(
            f"wire: {len(data)} bytes where its header says {_HEADER.size + sum(sizes)}"
        )
    if zlib.crc32(body) != crc:
        raise UserError("wire: the checksum differs; the bytes were damaged on the way")
    mark, owners, span, mask, slots = _split(body, sizes)
    latent = Latent(
        slots=codec(name, levels).unpack(slots, m, d)[None],  # type: ignore[arg-type]
        mask=np.unpackbits(np.frombuffer(mask, np.uint8), count=m).astype(bool)[None],  # type: ignore[arg-type]
        span=np.frombuffer(span, "<f4").astype(np.float32) if flags & _SPAN else None,  # type: ignore[arg-type]
        owner=tuple(np.frombuffer(owners, "<i2").tolist()),
    )
    return Message(latent, name, mark if flags & _FINGERPRINT else None)


def nbytes(
    m: int,
    d: int,
    codec_name: str,
    *,
    levels: tuple[int, ...] = (),
    owners: bool = False,
    span: bool = True,
    mark: bool = True,
) -> int:
    """Number of bytes that `to_bytes` writes; by default for what `lw_jax.api` sends.

    Args:
        m: number of slots.
        d: width of a slot, or number of its codes.
        codec_name: one of `lw_jax.wire.codecs.CODECS`, or `codes`.
        levels: for `codes`, the number of values of each code in a slot.
        owners: whether slots have owners.
        span: whether the length of the source is sent.
        mark: whether the bridge is named.
    """
    flags = _FINGERPRINT * mark + _OWNERS * owners + _SPAN * span
    return _HEADER.size + sum(_sizes(codec_name, m, d, flags, levels))


def sendable(latent: Latent) -> Latent:
    """Drops trailing masked slots and redundant owners from a latent of one row.

    Owners are redundant if every receiver reads every slot. A reader makes the same of the result.
    """
    real = int(np.asarray(latent.mask)[0].nonzero()[0].max(initial=-1)) + 1
    owner = latent.owner[:real]
    return dataclasses.replace(
        latent,
        slots=latent.slots[:, :real],
        mask=latent.mask[:, :real],
        owner=() if all(o == SHARED for o in owner) else owner,
    )


def _sizes(
    codec_name: str, m: int, d: int, flags: int, levels: tuple[int, ...]
) -> tuple[int, int, int, int, int]:
    return (
        8 if flags & _FINGERPRINT else 0,
        2 * m if flags & _OWNERS else 0,
        4 if flags & _SPAN else 0,
        (m + 7) // 8,
        codec(codec_name, levels).nbytes(m, d),
    )


def _split(body: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    ends = np.cumsum((0, *sizes)).tolist()
    return [body[a:b] for a, b in pairwise(ends)]
