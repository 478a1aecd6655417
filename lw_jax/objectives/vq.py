"""Codes move to their slots, and slots stay near their code (van den Oord et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.code_notes import real_slots, sown
from lw_jax.objectives.context import Context
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Codebook and commitment loss of the bottleneck `vq`.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        beta: of the commitment loss.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    beta: float = 0.25

    def __post_init__(self) -> None:
        at_least(self, 0, "beta")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Mean squared difference of a slot's entries, per slot."""
    x, chosen, codes = (sown(context, n, "vq", "vq") for n in ("inputs", "chosen", "codes"))
    real = real_slots(context, codes)
    codebook = jnp.mean(jnp.square(jax.lax.stop_gradient(x) - chosen), axis=-1)
    commitment = jnp.mean(jnp.square(x - jax.lax.stop_gradient(chosen)), axis=-1)
    return {"vq": masked(codebook + config.beta * commitment, real)}
