"""Entropy bonus of a codebook: a batch should use all codes alike (V15c).

The entropy of the mean soft assignment softmax(-distance / temperature), as in Yu et al. 2023
(arXiv:2310.05737); unlike a count of codes in use it has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.objectives.base import Objective, Term, Terms
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_bottleneck, real_slots
from lw_jax.utils.bounds import Temperature, Weight


@dataclass(frozen=True)
class Config(Objective):
    """Entropy of the codes of the bottleneck `vq`.

    Args:
        temperature: of the soft assignment; distances are mean squares of differences.
    """

    weight: Weight = 0.1
    temperature: Temperature = 0.1

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats that the entropy falls short of even use, log K - H, over the slots of the batch."""
        remedy = "set a bottleneck with a codebook"
        distances, codes = (of_bottleneck(ctx, n, remedy) for n in ("distances", "codes"))
        real = real_slots(ctx, codes).astype(jnp.float32)
        count = jnp.sum(real)
        soft = jax.nn.softmax(-distances / self.temperature, axis=-1)
        shares = jnp.einsum("bmk,bm->k", soft, real) / jnp.maximum(1.0, count)
        # A share can underflow to 0, where the slope of x log x is infinite.
        entropy = -jnp.sum(shares * jnp.log(jnp.maximum(shares, jnp.finfo(jnp.float32).tiny)))
        short = jnp.log(float(shares.shape[0])) - entropy
        return Terms(Term(count * short, count))
