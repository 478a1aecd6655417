"""A safetensors file whose tensors several threads read at once.

The library checks the header. Its own `get_tensor` lets no other Python thread run while it copies,
and copies out of a map of the file, whose pages count as the process's memory. Here a tensor is
read into memory of its own, and each block can be looked at while it is in the processor's cache.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

BLOCK = 1 << 20
"""Bytes that are read, and looked at, together."""
_ALIGNED = 64
"""Bytes; what begins at a multiple of them jax uses on a CPU as it is, without a copy."""
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Shard:
    """An open safetensors file.

    Args:
        path: the file.

    Raises:
        SafetensorError: its header is wrong, or the file is shorter or longer than that says.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = safe_open(path, framework="numpy")
        self._file = path.open("rb")
        length = int.from_bytes(self._file.read(8), "little")
        self._header = json.loads(self._file.read(length))
        self._begin = 8 + length

    def __enter__(self) -> Self:
        self._checked.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.close()
        self._checked.__exit__(*raised)

    def keys(self) -> Iterable[str]:
        """The names of the tensors."""
        names: list[str] = self._checked.keys()
        return names

    def get_slice(self, name: str) -> Any:
        """Shape and dtype of a tensor, see `safetensors`."""
        return self._checked.get_slice(name)

    def get_tensor(self, name: str, look: Callable[[NDArray], None] | None = None) -> NDArray:
        """A floating-point tensor in its own dtype; float64 becomes float32, and what overflows
        infinity.

        Args:
            name: of the tensor.
            look: is called with each block of its numbers, flat, as soon as that is read; what it
                raises ends the reading.

        Raises:
            OSError: it cannot be read.
        """
        entry = self._header[name]
        stored = _DTYPES[entry["dtype"]]
        wide = np.empty(BLOCK // 8, np.float64) if stored == np.float64 else None
        tensor = _room(math.prod(entry["shape"]), stored if wide is None else np.dtype(np.float32))
        at, step = self._begin + entry["data_offsets"][0], BLOCK // stored.itemsize
        for begin in range(0, tensor.size, step):
            block = tensor[begin : begin + step]
            if wide is None:
                self._fill(block, at)
            else:
                self._fill(wide[: block.size], at)
                with np.errstate(over="ignore"):
                    block[:] = wide[: block.size]
            at += block.size * stored.itemsize
            if look is not None:
                look(block)
        return tensor.reshape(entry["shape"])

    def same(self, name: str, other: Shard, twin: str) -> bool:
        """Whether a tensor holds the numbers of a tensor of a file, in whatever dtypes.

        Args:
            name: of the tensor.
            other: the file of the second one.
            twin: its name there.

        Raises:
            OSError: one cannot be read.
        """
        if self._header[name]["shape"] != other._header[twin]["shape"]:
            return False
        pairs = zip(self._blocks(name), other._blocks(twin), strict=True)
        return all(
            np.array_equal(a, b) or np.array_equal(a.astype(np.float64), b.astype(np.float64))
            for a, b in pairs
        )

    def _blocks(self, name: str) -> Iterator[NDArray]:
        """A tensor's numbers as stored, flat, some at a time."""
        entry = self._header[name]
        stored, count = _DTYPES[entry["dtype"]], math.prod(entry["shape"])
        at, step = self._begin + entry["data_offsets"][0], BLOCK // 8
        for begin in range(0, count, step):
            block = np.empty(min(step, count - begin), stored)
            self._fill(block, at + begin * stored.itemsize)
            yield block

    def _fill(self, numbers: NDArray, at: int) -> None:
        """Reads as many bytes as an array has, from a place of the file on."""
        left = numbers.view(np.uint8).data
        while left:
            count = os.preadv(self._file.fileno(), [left], at)
            if not count:
                raise OSError("the file ends before the tensor does")
            left, at = left[count:], at + count


def _room(count: int, dtype: np.dtype) -> NDArray:
    """Uninitialised numbers, flat, at a place that jax can use as it is."""
    size = count * dtype.itemsize
    room = np.empty(size + _ALIGNED, np.uint8)
    begin = -room.ctypes.data % _ALIGNED
    return room[begin : begin + size].view(dtype)
