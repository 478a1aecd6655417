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
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.measures import Distance, distance
from lw_jax.objectives.targets import suffix_states
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Distance of the states that follow the message to those of the receiver on the text.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        layers: compared after each of the first so many layers.
        distance: `relative_mse` (over the target's mean square), `mse`, or `cosine` (1 - cosine).
    """

    weight: float = 0.1
    schedule: Schedule = Schedule()
    layers: int = 4
    distance: Distance = "relative_mse"

    def __post_init__(self) -> None:
        at_least(self, 1, "layers")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """The distance per token, a mean over the layers."""
    most = context.dims.receivers[receiver].layers
    if config.layers > most:
        raise UserError(
            f"objectives.state_kd.layers: {config.layers}, and receiver {receiver!r} has {most}"
        )
    student, mask = suffix_states(context, receiver, "latent", config.layers)
    teacher, _ = suffix_states(context, receiver, "text", config.layers)
    apart = distance(config.distance, student, jax.lax.stop_gradient(teacher))
    return {"state_kd": masked(jnp.mean(apart, axis=0), mask)}
