"""TensorBoard events, read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def summaries(folder: Path) -> Iterator[tuple[int, Any]]:
    """(step, value) of all summaries below a folder, file by file."""
    from tensorboardX.proto import event_pb2

    for path in sorted(folder.rglob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                yield event.step, value


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag the value of every step."""
    found: dict[str, dict[int, float]] = {}
    for step, value in summaries(folder):
        if value.HasField("simple_value"):
            found.setdefault(value.tag, {})[step] = value.simple_value
    return found


def texts(folder: Path) -> dict[str, str]:
    """By tag the last text."""
    found = {}
    for _, value in summaries(folder):
        if value.HasField("tensor"):
            found[value.tag] = value.tensor.string_val[0].decode()
    return found
