"""Deliveries of different texts point in different directions (docs/design.md section 10, v15k).

Mean off-diagonal cosine of the flattened soft tokens. Pairs are those of the global batch, or of
one microbatch with `accumulate`; rows with the same text are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.measures import unit
from lw_jax.objectives.targets import counted, given_slots, others
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Mean cosine of what two different contexts deliver.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
    """

    weight: float = 0.1
    schedule: Schedule = Schedule()


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """The cosine per ordered pair of contexts."""
    slots, mask = given_slots(context, receiver, "batch_diversity")
    flat = unit((slots * mask[..., None]).reshape(slots.shape[0], -1))
    alike = jnp.einsum("id,jd->ij", flat, flat)
    pairs = others(context, receiver, counted(context, mask))
    return {"batch_diversity": masked(alike, pairs)}
