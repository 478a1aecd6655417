"""Holds what is delivered near the receiver's loudness: its RMS, its learned scale, its colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Term, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_soft_tokens
from lw_jax.objectives.common.targets import given_slots
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Squared deviation of the soft tokens' loudness.

    Args:
        weight: of this objective in the loss (the earlier systems: scale 0.05, colour 1e-4).
        of: `rms`, each token's RMS over that of the receiver's embeddings, from 1; `scale`, the
            learned scale over its start, from 1; `colour`, the channels' gains from 1 and biases
            from 0.
    """

    at_rest: ClassVar[float] = 1e-4  # a deviation of 1 %

    weight: Weight = 0.05
    of: Literal["rms", "scale", "colour"] = "rms"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The mean square, per soft token (`rms`) or once for a batch."""
        slots, mask = given_slots(ctx, receiver)
        if self.of == "rms":
            own = ctx.dims.receivers[receiver].embed_rms
            rms = jnp.sqrt(jnp.mean(jnp.square(slots.astype(jnp.float32)), axis=-1) + 1e-12)
            counts = mask & ctx.valid_contexts[:, None]
            return Terms(masked(jnp.square(rms / own - 1.0), counts))
        remedy = "set its conditioning or colour, or use `of: rms`"
        value = of_soft_tokens(ctx, receiver, self.of, remedy)
        loss = value if self.of == "colour" else jnp.square(value - 1.0)
        return Terms(Term(loss, jnp.float32(1.0)))
