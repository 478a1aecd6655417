"""-log of the variance of the FSQ codes over a batch, mean over a slot's codes (V15g).

The variance of *rounded* codes cannot undo a collapse: where all slots have one code each deviation
is 0, and so is the gradient. `rounded: false` takes the codes before rounding, whose deviations
are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Term, Terms
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_bottleneck, real_slots
from lw_jax.utils.bounds import Weight

_LEAST = 1e-6  # of a variance, where all codes are the same


@dataclass(frozen=True)
class Config(Objective):
    """Variance of the codes of the bottleneck `fsq`.

    Args:
        rounded: of the codes as sent; false for those before rounding.
    """

    weight: Weight = 0.1
    rounded: bool = True

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """-log variance of the codes, scaled to [-1, 1], over all slots of the batch."""
        name = "values" if self.rounded else "bounded"
        remedy = "set a bottleneck that rounds each number to levels"
        values, codes = (of_bottleneck(ctx, n, remedy) for n in (name, "codes"))
        real = real_slots(ctx, codes).astype(jnp.float32)
        count = jnp.sum(real)
        weights = (real / jnp.maximum(1.0, count))[..., None]
        mean = jnp.sum(values * weights, axis=(0, 1), keepdims=True)
        variance = jnp.sum(jnp.square(values - mean) * weights, axis=(0, 1))
        return Terms(Term(-count * jnp.mean(jnp.log(variance + _LEAST)), count))
