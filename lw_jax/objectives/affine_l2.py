"""Holds the soft tokens' per-channel gains near 1 and their biases near 0.

See docs/design.md section 5.

The affine is `bridge.reader.soft_tokens.colour`. It is `scale_l2` with `of: colour`, to stand
beside that with a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Term, Terms
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_soft_tokens
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Mean square of the channels' gains - 1 and biases."""

    at_rest: ClassVar[float] = 1e-4  # a deviation of 1 %

    weight: Weight = 1e-4

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Once for a batch."""
        loss = of_soft_tokens(ctx, receiver, "colour", "set its colour to true")
        return Terms(Term(loss, jnp.float32(1.0)))
