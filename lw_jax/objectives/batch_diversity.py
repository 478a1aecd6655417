"""Deliveries of different texts point in different directions (docs/design.md section 10, v15k).

Mean off-diagonal cosine of the flattened soft tokens. Pairs are those of the global batch, or of
one microbatch with `accumulate`; rows with the same text are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import unit
from lw_jax.objectives.common.targets import counted, given_slots, others
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Mean cosine of what two different contexts deliver."""

    weight: Weight = 0.1

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The cosine per ordered pair of contexts."""
        slots, mask = given_slots(ctx, receiver)
        flat = unit((slots * mask[..., None]).reshape(slots.shape[0], -1))
        alike = jnp.einsum("id,jd->ij", flat, flat)
        pairs = others(ctx, receiver, counted(ctx, mask))
        return Terms(masked(alike, pairs))
