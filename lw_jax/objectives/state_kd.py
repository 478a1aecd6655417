"""Distillation of the receiver's states after its first layers, on what follows the message.

docs/design.md sections 6 and 11: question, anchor and answer; weight 0.1, the first 4 or 5 layers.
The teacher is the clean receiver on the text (no adapters, no gradient). Both run only the layers
compared, and keep only the states of what the two sequences share.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import Distance, distance
from lw_jax.objectives.common.targets import suffix_states
from lw_jax.utils.bounds import Layers, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Distance of the states that follow the message to those of the receiver on the text.

    Args:
        layers: compared after each of the first so many layers.
        distance: `relative_mse` (over the target's mean square), `mse`, or `cosine` (1 - cosine).
    """

    weight: Weight = 0.1
    layers: Layers = 4
    distance: Distance = "relative_mse"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per token, a mean over the layers."""
        most = ctx.dims.receivers[receiver].layers
        if self.layers > most:
            raise UserError(f"layers: {self.layers}, and receiver {receiver!r} has {most}")
        student, mask = suffix_states(ctx, receiver, "latent", self.layers)
        teacher, _ = suffix_states(ctx, receiver, "text", self.layers)
        apart = distance(self.distance, student, jax.lax.stop_gradient(teacher))
        return Terms(masked(jnp.mean(apart, axis=0), mask))
