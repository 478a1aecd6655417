"""Codes move to their slots, and slots stay near their code (van den Oord et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_bottleneck, real_slots
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Codebook and commitment loss of the bottleneck `vq`.

    Args:
        beta: of the commitment loss.
    """

    beta: Weight = 0.25

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Mean squared difference of a slot's entries, per slot."""
        remedy = "set a bottleneck with a codebook"
        x, chosen, codes = (of_bottleneck(ctx, n, remedy) for n in ("inputs", "chosen", "codes"))
        real = real_slots(ctx, codes)
        codebook = jnp.mean(jnp.square(jax.lax.stop_gradient(x) - chosen), axis=-1)
        commitment = jnp.mean(jnp.square(x - jax.lax.stop_gradient(chosen)), axis=-1)
        return Terms(masked(codebook + self.beta * commitment, real))
