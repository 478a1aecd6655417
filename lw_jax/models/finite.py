"""Whether numbers are finite, from their bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

_INFINITE = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""Bits of infinity; larger ones, the sign aside, are NaN."""
_ROUNDS_TO_INFINITY = 0x7F7F8000
"""Bits of the smallest float32 that is infinite as bfloat16."""


def not_finite(numbers: NDArray, dtype: Any) -> int:
    """How many numbers are NaN or infinity, or become infinite in another dtype.

    The bits are compared as integers. Read as signed ones, numbers above zero are the largest; as
    unsigned ones, those below zero are. So two maxima, for which nothing is copied, say that all
    are finite; they are fastest over numbers that are in the processor's cache.

    Args:
        numbers: float32, float16 or bfloat16, contiguous.
        dtype: in which they will be stored.
    """
    if not numbers.size:
        return 0
    width = 8 * numbers.dtype.itemsize
    limit, sign = _INFINITE[jnp.dtype(numbers.dtype).name], 1 << (width - 1)
    if numbers.dtype == np.float32 and jnp.dtype(dtype) == jnp.bfloat16:
        limit = _ROUNDS_TO_INFINITY
    bits = numbers.reshape(-1).view(f"u{width // 8}")
    if bits.view(f"i{width // 8}").max() < limit and bits.max() < sign + limit:
        return 0
    return int(((bits & bits.dtype.type(sign - 1)) >= limit).sum())
