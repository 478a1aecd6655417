"""A bonus for an undecided first answer token, against collapse to one word (fault 17)."""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.objectives.common.targets import first_token
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Minus the entropy of the distribution of the first answer token that is no space.

    Args:
        weight: of this objective in the loss (the earlier systems: 0.1 to 1).
    """

    weight: Weight = 0.1

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Minus nats per question; the loss sinks as the entropy rises."""
        scored, counts = first_token(ctx, receiver, Pass("latent"))
        return Terms(masked(-scored.entropy, counts))
