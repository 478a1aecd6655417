"""Holds the soft tokens' per-channel gains near 1 and their biases near 0.

See docs/design.md section 5.

The affine is `bridge.reader.soft_tokens.colour`. It is `scale_l2` with `of: colour`, to stand
beside that with a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from lw_jax.objectives.base import Term
from lw_jax.objectives.context import Context
from lw_jax.objectives.scale_l2 import sown
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Mean square of the channels' gains - 1 and biases.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
    """

    at_rest: ClassVar[float] = 1e-4  # a deviation of 1 %

    weight: float = 1e-4
    schedule: Schedule = Schedule()


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Once for a batch."""
    loss = sown(context, receiver, "colour", "affine_l2", "set its colour to true")
    return {"affine_l2": Term(loss, jnp.float32(1.0))}
