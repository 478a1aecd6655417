"""A bonus for an undecided first answer token, against collapse to one word (fault 17)."""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context, Pass
from lw_jax.objectives.targets import first_token
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Minus the entropy of the distribution of the first answer token that is no space.

    Args:
        weight: of this objective in the loss (the earlier systems: 0.1 to 1).
        schedule: factor of the weight over the steps.
    """

    weight: float = 0.1
    schedule: Schedule = Schedule()


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Minus nats per question; the loss sinks as the entropy rises."""
    scored, counts = first_token(context, receiver, Pass("latent"))
    return {"entropy": masked(-scored.entropy, counts)}
