"""One latent as bytes, and back, exactly: all that crosses the wire (docs/design.md section 8).

A packet of version 2, byte by byte; numbers are little-endian:

    byte    length
    0       4       "LWJX"
    4       1       version: 2
    5       1       codec: 0 float32, 1 float16, 2 bfloat16, 3 int8, 4 int6, 5 int4, 6 codes
    6       1       flags: 1 mark, 2 owners, 4 span, 8 tag; the other four bits are 0
    7       1       0
    8       2       M, number of slots
    10      2       d, width of a slot, or the number of its codes
    12      4       CRC-32 of the whole packet, with zeros in these four bytes
    16      8       mark of the bridge (`lw_jax.wire.mark`), if flag 1
    next    2 M     owner of each slot, int16, if flag 2
    next    4       span, float32, if flag 4
    next    M / 8   mask, a bit for each slot, the first in the highest; bits left over are 0
    next            slots in the codec; bits left over are 0
    next    16      tag: the first half of the HMAC-SHA256 of all before it, with zeros in the
                    four bytes of the CRC, if flag 8

A bridge with discrete codes sends those: d is then the number of codes in a slot, `slots` the
codes, and the bridge at the other end makes the slots of them
(`lw_jax.bridge.bridge.Bridge.from_wire`).

The CRC finds damage. It does not find intent: whoever can read a packet can write another one with
a right CRC and mark. With a key that both ends share the tag finds that too. Nothing is encrypted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lw_jax.errors import UserError
from lw_jax.types import SHARED, Latent
from lw_jax.wire.codecs import CODECS, CODES, CODES_TAG, codec
from lw_jax.wire.limits import Limits

VERSION = 2
MARK_BYTES = 8
TAG_BYTES = 16
MAGIC = b"LWJX"
_HEADER = struct.Struct("<4sBBBBHHI")
_CRC = slice(12, 16)
_MARK, _OWNERS, _SPAN, _TAG = 1, 2, 4, 8
_NAMES = {c.tag: name for name, c in CODECS.items()} | {CODES_TAG: CODES}
_MOST = 2**16 - 1
"""The largest M and d that a header can hold."""


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


class Facts(NamedTuple):
    """What a packet says of itself, whoever sent it.

    Attributes:
        codec: name of the codec.
        slots: number of slots.
        width: of a slot, or number of its codes.
        mark: 8 bytes that name the bridge; None: it is not named.
        tokens: length of the text in tokens of the sender; None: it is not sent.
        tagged: whether it was made with a key.
    """

    codec: str
    slots: int
    width: int
    mark: bytes | None
    tokens: float | None
    tagged: bool


@dataclass(frozen=True)
class _Header:
    """What the first bytes say.

    Attributes:
        codec: name of the codec.
        flags: which parts follow.
        m: number of slots.
        d: width of a slot, or number of its codes.
    """

    codec: str
    flags: int
    m: int
    d: int

    def sizes(self, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes of mark, owners, span, mask, slots and tag."""
        return _sizes(self.codec, self.m, self.d, self.flags, levels)


def to_bytes(
    latent: Latent,
    *,
    codec_name: str = "float32",
    levels: tuple[int, ...] = (),
    mark: bytes | None = None,
    key: bytes | None = None,
) -> bytes:
    """The bytes of a latent of one row.

    Args:
        latent: slots [1, M, d] or codes [1, M, n], mask [1, M], span [1] or None.
        codec_name: one of `lw_jax.wire.codecs.CODECS`, or `codes`.
        levels: for `codes`, the number of values of each code in a slot.
        mark: 8 bytes that name the bridge, so that another bridge refuses them.
        key: that both ends share; None: the packet has no tag.

    Raises:
        UserError: the latent has more than one row, is not finite, or does not fit the codec or
            the header.
    """
    dtype = np.int32 if codec_name == CODES else np.float32
    slots, mask = np.asarray(latent.slots, dtype), np.asarray(latent.mask, bool)
    if slots.ndim != 3 or slots.shape[0] != 1:
        raise UserError(f"wire: one text at a time, slots [1, M, d]; got {list(slots.shape)}")
    _, m, d = slots.shape
    if max(m, d) > _MOST:
        raise UserError(f"wire: {m} slots of width {d}, where a packet holds {_MOST} of each")
    if mask.shape != (1, m) or len(latent.owner) not in (0, m):
        raise UserError(
            f"wire: {m} slots with a mask {list(mask.shape)} and {len(latent.owner)} owners"
        )
    flags, extra = 0, b""
    if mark is not None:
        if len(mark) != MARK_BYTES:
            raise UserError(f"wire: a mark has {MARK_BYTES} bytes; got {len(mark)}")
        flags, extra = flags | _MARK, extra + mark
    if latent.owner:
        flags, extra = flags | _OWNERS, extra + np.asarray(latent.owner, "<i2").tobytes()
    if latent.span is not None:
        span = np.asarray(latent.span, "<f4")
        if span.shape != (1,) or not np.isfinite(span).all():
            raise UserError(f"wire: expected one finite span; got {span.tolist()}")
        flags, extra = flags | _SPAN, extra + span.tobytes()
    _check_finite(slots)
    coding = codec(codec_name, levels)
    flags |= _TAG if key is not None else 0
    header = _HEADER.pack(MAGIC, VERSION, coding.tag, flags, 0, m, d, 0)
    data = header + extra + np.packbits(mask[0]).tobytes() + coding.pack(slots[0])
    if key is not None:
        data += _tag(data, key)
    return data[: _CRC.start] + _crc(data) + data[_CRC.stop :]


def from_bytes(
    data: bytes,
    levels: tuple[int, ...] = (),
    *,
    mark: bytes | None = None,
    limits: Limits | None = None,
    key: bytes | None = None,
) -> Message:
    """The latent that `to_bytes` wrote. Nothing is allocated before the sizes are checked.

    Args:
        data: the bytes.
        levels: number of values of each code of the bridge at this end; (): it has no codes.
        mark: of the bridge at this end; None: any bridge's.
        limits: what a packet of the bridge at this end can be; None: anything.
        key: that both ends share; None: packets have no tag.

    Raises:
        UserError: the bytes are no latent, of another version, damaged, another bridge's, made
            with another key, or nothing that this bridge sends.
    """
    header = _header(data, levels)
    _check_tag(data, header, key)
    sizes = header.sizes(levels)
    own, owners, span, mask, slots, _ = _split(data[_HEADER.size :], sizes)
    if mark is not None and own != mark:
        raise UserError("wire: these bytes are of another bridge than the one loaded")
    m, d = header.m, header.d
    if limits is not None:
        limits.check_size(m, None if header.codec == CODES else d)
    real = np.unpackbits(np.frombuffer(mask, np.uint8), count=m).astype(bool)
    if np.packbits(real).tobytes() != mask:
        raise UserError("wire: the mask goes on after the last slot")
    coding = codec(header.codec, levels)
    values = coding.unpack(slots, m, d)
    _check_finite(values)
    # Each latent has one encoding; bits left over, or codes out of range, are nobody's.
    if "float" not in header.codec and coding.pack(values) != slots:
        raise UserError(f"wire: the slots are no {header.codec} that a sender writes")
    latent = Latent(
        slots=values[None],  # type: ignore[arg-type]
        mask=real[None],  # type: ignore[arg-type]
        span=_span(span) if header.flags & _SPAN else None,  # type: ignore[arg-type]
        owner=tuple(np.frombuffer(owners, "<i2").tolist()),
    )
    if limits is not None:
        limits.check(latent)
    return Message(latent, header.codec, own if header.flags & _MARK else None)


def facts(data: bytes) -> Facts:
    """What a packet says of itself; its slots are not read, and neither mark nor tag is judged.

    Args:
        data: the bytes.

    Raises:
        UserError: they are no packet, of another version, or damaged.
    """
    header = _header(data, None)
    at, mark, tokens = _HEADER.size, None, None
    if header.flags & _MARK:
        mark, at = data[at : at + MARK_BYTES], at + MARK_BYTES
    if header.flags & _OWNERS:
        at += 2 * header.m
    if header.flags & _SPAN:
        tokens = float(_span(data[at : at + 4])[0])
    return Facts(header.codec, header.m, header.d, mark, tokens, bool(header.flags & _TAG))


def nbytes(
    m: int,
    d: int,
    codec_name: str,
    *,
    levels: tuple[int, ...] = (),
    owners: bool = False,
    span: bool = True,
    mark: bool = True,
    key: bool = False,
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
        key: whether the packet has a tag.
    """
    flags = _MARK * mark + _OWNERS * owners + _SPAN * span + _TAG * key
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


def _header(data: bytes, levels: tuple[int, ...] | None) -> _Header:
    """The header of a whole and undamaged packet.

    Args:
        data: the packet.
        levels: number of values of each code; None: unknown, and so is the size of codes.

    Raises:
        UserError: it is none.
    """
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise UserError(f"wire: these {len(data)} bytes are no lw_jax latent")
    _, version, tag, flags, zero, m, d, _ = _HEADER.unpack_from(data)
    if version == 1:
        raise UserError(
            f"wire: a version 1 packet; this reads version {VERSION}; encode the text again"
        )
    if version != VERSION:
        raise UserError(f"wire: a packet of version {version}; this reads version {VERSION}")
    known = tag in _NAMES and not flags & ~(_MARK | _OWNERS | _SPAN | _TAG)
    header = _Header(_NAMES.get(tag, ""), flags, m, d)
    codes = header.codec == CODES
    fits = known and (not codes or levels is None or d == len(levels))
    size = len(data)
    if fits and codes and levels is None:
        size = max(size, _HEADER.size + sum(_parts(m, flags)))
    elif fits:
        size = _HEADER.size + sum(header.sizes(levels or ()))
    if size != len(data):
        raise UserError(f"wire: {len(data)} bytes where its header says {size}")
    if _crc(data) != data[_CRC]:
        raise UserError("wire: the checksum differs; the bytes were damaged on the way")
    if not known or zero:
        raise UserError(
            f"wire: codec {tag}, flags {flags:#04x}, byte 7 {zero:#04x}: not known to version "
            f"{VERSION}; a later version of lw_jax wrote it"
        )
    if not fits:
        assert levels is not None
        raise UserError(f"wire: {d} codes a slot, where the bridge at this end has {len(levels)}")
    return header


def _check_tag(data: bytes, header: _Header, key: bytes | None) -> None:
    tagged = bool(header.flags & _TAG)
    if key is None and tagged:
        raise UserError("wire: the packet was made with a key; load the bridge with the same one")
    if key is None:
        return
    if not tagged:
        raise UserError("wire: the packet was made without a key, and this bridge asks for one")
    blank = data[: _CRC.start] + bytes(4) + data[_CRC.stop : -TAG_BYTES]
    if not hmac.compare_digest(_tag(blank, key), data[-TAG_BYTES:]):
        raise UserError(
            "wire: the packet was made with another key, or changed by someone without it"
        )


def _crc(data: bytes) -> bytes:
    """CRC-32 of a packet, its own field taken as zeros."""
    start = zlib.crc32(bytes(4), zlib.crc32(data[: _CRC.start]))
    return zlib.crc32(data[_CRC.stop :], start).to_bytes(4, "little")


def _tag(data: bytes, key: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()[:TAG_BYTES]


def _check_finite(slots: np.ndarray) -> None:
    if not np.isfinite(slots).all():
        raise UserError("wire: a slot is not finite")


def _span(data: bytes) -> np.ndarray:
    span = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(span).all():
        raise UserError("wire: the span is not finite")
    return span


def _sizes(
    codec_name: str, m: int, d: int, flags: int, levels: tuple[int, ...]
) -> tuple[int, int, int, int, int, int]:
    mark, owners, span, mask, tag = _parts(m, flags)
    return mark, owners, span, mask, codec(codec_name, levels).nbytes(m, d), tag


def _parts(m: int, flags: int) -> tuple[int, int, int, int, int]:
    """Bytes of mark, owners, span, mask and tag."""
    return (
        MARK_BYTES if flags & _MARK else 0,
        2 * m if flags & _OWNERS else 0,
        4 if flags & _SPAN else 0,
        (m + 7) // 8,
        TAG_BYTES if flags & _TAG else 0,
    )


def _split(body: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    ends = np.cumsum((0, *sizes)).tolist()
    return [body[a:b] for a, b in pairwise(ends)]
