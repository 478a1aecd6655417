"""The `gguf` package's reader, which here takes long lists whole.

The package makes two arrays for every string of a vocabulary, and looks at each again to know where
the next one begins: seconds for a file of 150,000 tokens.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

LONG = 1024
"""Lists of so many values or more are taken whole."""


class Reader(GGUFReader):
    """An open GGUF file, whose long lists have one part; `values` reads any field."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Size in bytes, parts, indices of the parts that are values, and types of a field."""
        if GGUFValueType(raw_type) is GGUFValueType.ARRAY and self.byte_order == "I":
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            what, many = GGUFValueType(int(kind[0])), int(count[0])
            if many >= LONG and what in (GGUFValueType.STRING, *self.gguf_scalar_to_np):
                whole = self._whole(orig_offs + 12, what, many)
                types = [GGUFValueType.ARRAY, what]
                return 12 + int(whole.nbytes), [kind, count, whole], [2] * many, types
        return super()._get_field_parts(orig_offs, raw_type)

    def _whole(self, begin: int, what: GGUFValueType, many: int) -> np.ndarray:
        """A list's numbers, or the bytes of its strings, each after its length."""
        if what is not GGUFValueType.STRING:
            numbers = np.asarray(self._get(begin, self.gguf_scalar_to_np[what], many))
            if len(numbers) < many:
                raise ValueError("a list of numbers goes on after the end of the file")
            return numbers
        end, held = begin, memoryview(np.asarray(self.data))  # type: ignore[arg-type]
        for left in range(many, 0, -1):
            if end + 8 * left > len(held):
                break
            end += 8 + _LENGTH.unpack_from(held, end)[0]
        else:
            if end <= len(held):
                return np.asarray(self.data[begin:end])
        raise ValueError("a list of strings goes on after the end of the file")


_LENGTH = struct.Struct("<Q")


def values(field: Any) -> list[Any]:
    """The values of a list in the metadata.

    Args:
        field: of a `Reader`.
    """
    if len(field.data) < LONG or field.data[0] != field.data[-1]:
        return list(field.contents())
    whole = field.parts[field.data[0]]
    if field.types[1] is not GGUFValueType.STRING:
        found: list[Any] = whole.tolist()
        return found
    found, begin, held = [], 0, whole.tobytes()
    for _ in field.data:
        end = begin + 8 + _LENGTH.unpack_from(held, begin)[0]
        found.append(held[begin + 8 : end].decode("utf-8"))
        begin = end
    return found
