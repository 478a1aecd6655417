"""Packets that no sender writes, with a right checksum: what someone who has read one can make."""

from __future__ import annotations

import zlib
from collections.abc import Callable


def sealed(data: bytes) -> bytes:
    """The bytes with the checksum made right."""
    blank = data[:12] + bytes(4) + data[16:]
    return data[:12] + zlib.crc32(blank).to_bytes(4, "little") + data[16:]


def changed(data: bytes, at: int, change: Callable[[int], int]) -> bytes:
    """The bytes with one of them changed."""
    return data[:at] + bytes([change(data[at])]) + data[at + 1 :]
