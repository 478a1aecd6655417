"""A message: the packets of one text after another, which can be appended, replaced and dropped.

One packet by itself is a message of one part. Several, or one whose number of characters is known,
are written as

    byte    length
    0       4       "LWJM"
    4       1       version: 1
    5       3       0
    8       4       n, number of parts
    12      4       CRC-32 of the whole, with zeros in these four bytes
    16      8 n     of each part the bytes of its packet, and the characters of its text, 2^32 - 1
                    where they are unknown
    next            the packets (`lw_jax.wire.packet`), one after another

Numbers are little-endian. Each packet has its own checksum, mark and, with a key, its own tag: a
key shows that no part was changed, not that none was left out or put elsewhere.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, overload

from lw_jax.errors import UserError
from lw_jax.utils.arguments import shown
from lw_jax.wire.packet import Facts, facts

MAGIC = b"LWJM"
VERSION = 1
MOST_PARTS = 2**16
_HEADER = struct.Struct("<4sB3sII")
_PART = struct.Struct("<II")
_UNKNOWN = 2**32 - 1


@dataclass(frozen=True, repr=False)
class Part:
    """One packet of a message.

    Attributes:
        packet: its bytes.
        characters: of the text behind it; None: unknown.
    """

    packet: bytes
    characters: int | None = None

    @cached_property
    def facts(self) -> Facts:
        """What the packet says of itself."""
        return facts(self.packet)


@dataclass(frozen=True, repr=False)
class Message:
    """What was sent of a text, in parts; each of them can be read without the others.

        >>> message = Message.from_bytes(sent)
        >>> message
        <lw_jax.Message of bridge ...: 32 slots of 256 (float16), 16,416 bytes>
        >>> message = message + wire.encode("Ada Lumen keeps 50 hens in the yard.")
        >>> [len(message), message.slots, message.dropped(0).slots]
        [2, 64, 32]

    Attributes:
        parts: in the order of the text, at least one.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("message: it has no part; a message has one at least")
        if len(self.parts) > MOST_PARTS:
            raise UserError(f"message: {len(self.parts)} parts; {MOST_PARTS} are the most")
        first = self.parts[0].facts
        for i, part in enumerate(self.parts):
            if part.facts.mark != first.mark:
                raise UserError(f"message: part {i} is of another bridge than part 0")

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message in bytes: a single packet, or what `to_bytes` wrote.

        Raises:
            UserError: they are neither, or damaged.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise UserError(f"message: expected bytes; got a value of type {type(data).__name__}")
        data = bytes(data)
        if data[:4] != MAGIC:
            return cls((Part(data),))
        if len(data) < _HEADER.size:
            raise UserError(f"message: cut after {len(data)} bytes; its header has {_HEADER.size}")
        _, version, zeros, count, crc = _HEADER.unpack_from(data)
        if version != VERSION:
            raise UserError(f"message: of version {version}; this reads version {VERSION}")
        if any(zeros):
            raise UserError("message: its header holds something where zeros belong")
        begin = _HEADER.size + count * _PART.size
        if not 0 < count <= MOST_PARTS or len(data) < begin:
            raise UserError(f"message: {len(data)} bytes that are to hold {count} parts")
        sizes = list(_PART.iter_unpack(data[_HEADER.size : begin]))
        if len(data) != begin + sum(size for size, _ in sizes):
            raise UserError(
                f"message: {len(data)} bytes where its header says "
                f"{begin + sum(size for size, _ in sizes)}"
            )
        if _crc(data) != crc:
            raise UserError("message: the checksum differs; the bytes were damaged on the way")
        parts = []
        for size, characters in sizes:
            known = None if characters == _UNKNOWN else characters
            parts.append(Part(data[begin : begin + size], known))
            begin += size
        return cls(tuple(parts))

    @classmethod
    def of(cls, parts: Iterable[Message | bytes]) -> Message:
        """One message of several, one after another; bytes are read by `from_bytes`.

        Raises:
            UserError: there is none, or something else among them.
        """
        if isinstance(parts, str) or not isinstance(parts, Iterable):
            raise UserError(f"message: expected a list of messages; got {shown(parts)}")
        return cls(tuple(part for one in parts for part in _message(one).parts))

    def to_bytes(self) -> bytes:
        """The bytes: of one part without a number of characters its packet, else as the module
        says."""
        if len(self.parts) == 1 and self.parts[0].characters is None:
            return self.parts[0].packet
        table = b"".join(
            _PART.pack(len(p.packet), _UNKNOWN if p.characters is None else p.characters)
            for p in self.parts
        )
        body = table + b"".join(p.packet for p in self.parts)
        blank = _HEADER.pack(MAGIC, VERSION, bytes(3), len(self.parts), 0) + body
        return _HEADER.pack(MAGIC, VERSION, bytes(3), len(self.parts), _crc(blank)) + body

    # What it says of itself

    @property
    def bridge(self) -> str | None:
        """Mark of the bridge that it is for, as 16 hexadecimal digits; None: it is not named."""
        mark = self.parts[0].facts.mark
        return None if mark is None else mark.hex()

    @property
    def codec(self) -> str:
        """Codec of its slots, or codecs, where its parts have several."""
        return ", ".join(dict.fromkeys(part.facts.codec for part in self.parts))

    @property
    def slots(self) -> int:
        """Slots of all parts."""
        return sum(part.facts.slots for part in self.parts)

    @property
    def width(self) -> int:
        """Numbers in a slot, or codes."""
        return self.parts[0].facts.width

    @property
    def tokens(self) -> float | None:
        """Tokens of the sender that it stands for; None: unknown."""
        return _total(part.facts.tokens for part in self.parts)

    @property
    def characters(self) -> int | None:
        """Characters that it stands for; None: unknown."""
        found = _total(part.characters for part in self.parts)
        return None if found is None else int(found)

    @property
    def nbytes(self) -> int:
        """Bytes of `to_bytes`."""
        plain = len(self.parts) == 1 and self.parts[0].characters is None
        return sum(len(p.packet) for p in self.parts) + (
            0 if plain else _HEADER.size + _PART.size * len(self.parts)
        )

    # Part by part

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Message]:
        return (Message((part,)) for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Message: ...
    def __getitem__(self, index: int | slice) -> Message:
        """A part, or some, as a message."""
        if isinstance(index, slice):
            return Message(self.parts[index])
        return Message((self.parts[_index(index, len(self.parts))],))

    def __add__(self, other: Message | bytes) -> Message:
        """This message, and another after it."""
        return Message((*self.parts, *_message(other).parts))

    def replaced(self, index: int, by: Message | bytes) -> Message:
        """The message with the parts of another in the place of one.

        Raises:
            UserError: there is no such part.
        """
        at = _index(index, len(self.parts))
        return Message((*self.parts[:at], *_message(by).parts, *self.parts[at + 1 :]))

    def dropped(self, index: int) -> Message:
        """The message without a part.

        Raises:
            UserError: there is no such part, or no other.
        """
        at = _index(index, len(self.parts))
        return Message((*self.parts[:at], *self.parts[at + 1 :]))

    def __repr__(self) -> str:
        parts = f"{len(self)} parts, " if len(self) > 1 else ""
        said = "" if self.characters is None else f" for {self.characters:,} characters"
        return (
            f"<lw_jax.Message of bridge {self.bridge}: {parts}{self.slots:,} slots of "
            f"{self.width} ({self.codec}), {self.nbytes:,} bytes{said}>"
        )


def _message(value: Message | bytes) -> Message:
    return value if isinstance(value, Message) else Message.from_bytes(value)


def _index(index: Any, count: int) -> int:
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise UserError(f"message: expected the number of a part; got {shown(index)}")
    index = int(index)
    if not -count <= index < count:
        raise UserError(f"message: part {index} of {count}; there is none")
    return index % count


def _total(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(v for v in known if v is not None)


def _crc(data: bytes) -> int:
    """CRC-32 of a whole message, its own field taken as zeros."""
    at = _HEADER.size - 4
    return zlib.crc32(data[at + 4 :], zlib.crc32(bytes(4), zlib.crc32(data[:at])))
