"""Entropy bonus of a codebook: a batch should use all codes alike (V15c).

The entropy of the mean soft assignment softmax(-distance / temperature), as in Yu et al. 2023
(arXiv:2310.05737); unlike a count of codes in use it has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.objectives.base import Term
from lw_jax.objectives.code_notes import real_slots, sown
from lw_jax.objectives.context import Context
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Entropy of the codes of the bottleneck `vq`.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        temperature: of the soft assignment; distances are mean squares of differences.
    """

    weight: float = 0.1
    schedule: Schedule = Schedule()
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature: expected above 0; got {self.temperature}")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats that the entropy falls short of even use, log K - H, over the slots of the batch."""
    distances, codes = (sown(context, n, "code_entropy", "vq") for n in ("distances", "codes"))
    real = real_slots(context, codes).astype(jnp.float32)
    count = jnp.sum(real)
    soft = jax.nn.softmax(-distances / config.temperature, axis=-1)
    shares = jnp.einsum("bmk,bm->k", soft, real) / jnp.maximum(1.0, count)
    # A share can underflow to 0, where the slope of x log x is infinite.
    entropy = -jnp.sum(shares * jnp.log(jnp.maximum(shares, jnp.finfo(jnp.float32).tiny)))
    short = jnp.log(float(shares.shape[0])) - entropy
    return {"code_entropy": Term(count * short, count)}
