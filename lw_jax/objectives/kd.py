"""Distillation: the receiver that reads the latent matches itself reading the text.

The teacher is the clean receiver (no adapters, no gradient) on the text prompt, token by token
along the gold answer (Hinton et al. 2015; docs/design.md section 12: the strongest single advice
for compressors).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.models.head import chunked_kl
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context, Pass
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """KL(teacher || student) of the next-token distributions.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        tau: temperature; the KL is multiplied by its square.
        first: answer tokens distilled; null for all.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    tau: float = 1.0
    first: int | None = None


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per answer token."""
    student = context.reading(receiver, Pass("latent"))
    teacher = context.reading(receiver, Pass("text", gradient=False))
    model = context.frozen.receivers[receiver]
    kl = chunked_kl(model.arch, model.params, student.hidden, teacher.hidden, config.tau)
    mask = student.mask & context.valid[:, None]
    if config.first is not None:
        mask = mask & (jnp.arange(mask.shape[1])[None, :] < config.first)
    return {"kd": masked(kl * config.tau**2, mask)}
