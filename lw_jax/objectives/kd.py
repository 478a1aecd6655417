"""Distillation: the receiver that reads the latent matches itself reading the text.

The teacher is the clean receiver (no adapters, no gradient) on the text prompt, or the tuned one
of the stage's `teacher`, token by token along the gold answer (Hinton et al. 2015; docs/design.md
section 12: the strongest single advice for compressors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.models.head import chunked_kl
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.utils.bounds import Tokens


@dataclass(frozen=True)
class Config(Objective):
    """KL(teacher || student) of the next-token distributions.

    Args:
        tau: temperature; the KL is multiplied by its square.
        first: answer tokens distilled; null for all.
    """

    tau: Annotated[float, Ge(0.01), Le(100)] = 1.0
    first: Tokens | None = None

    def teacher_tau(self) -> float | None:
        """Its temperature."""
        return self.tau

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per answer token."""
        student = ctx.reading(receiver, Pass("latent"))
        kl = ctx.answers(receiver)[1] if ctx.scored(receiver) and ctx.tau == self.tau else None
        if kl is None:
            teacher = ctx.taught(receiver)
            model = ctx.frozen.receivers[receiver]
            kl = chunked_kl(model.arch, model.params, student.hidden, teacher.hidden, self.tau)
        mask = student.mask & ctx.valid[:, None]
        if self.first is not None:
            mask = mask & (jnp.arange(mask.shape[1])[None, :] < self.first)
        return Terms(masked(kl * self.tau**2, mask))
