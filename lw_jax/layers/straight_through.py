"""The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432)."""

from __future__ import annotations

from typing import Any

import jax

from lw_jax.types import Array


@jax.custom_jvp
def straight_through(x: Array, value: Array) -> Array:
    """`value`, exactly, with the gradient of x: none reaches `value`. Shapes and dtypes are equal.

    `x + stop_gradient(value - x)` would round, and the result would differ from what a codec sends.
    """
    return value


@straight_through.defjvp
def _jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Any, Any]:
    return straight_through(*primals), tangents[0]
