"""-log of the share of different codes in a batch (V15f): a number to watch, not to learn from.

A count of codes has no gradient: whatever its weight, this objective moves no parameter (fault 9).
It is here because an earlier system trained with it. `code_variance` and `code_entropy` have
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from lw_jax.bottlenecks.codes import distinct
from lw_jax.objectives.base import Objective, Term, Terms
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.intermediates import of_bottleneck, real_slots
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Share of different codes; its gradient is exactly zero.

    Args:
        weight: of this objective in the loss; it changes the loss and nothing else.
    """

    has_gradient: ClassVar[bool] = False

    weight: Weight = 0.1

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """-log(different code tuples / slots) of the batch."""
        codes = of_bottleneck(ctx, "codes", "set a bottleneck with codes")
        real = real_slots(ctx, codes)
        count = jnp.sum(real).astype(jnp.float32)
        different = distinct(jnp.where(real[..., None], codes, -1)).astype(jnp.float32)
        share = jnp.maximum(1.0, different) / jnp.maximum(1.0, count)
        return Terms(Term(-count * jnp.log(share), count))
