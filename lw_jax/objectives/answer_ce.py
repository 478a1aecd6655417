"""Teacher-forced cross-entropy of the answer tokens, EOS included, read from the latent."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lw_jax.models.head import chunked_cross_entropy
from lw_jax.objectives.base import Context, Pass, Term, masked
from lw_jax.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Cross-entropy of the answer.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per answer token."""
    reading = context.reading(receiver, Pass("latent"))
    party = context.parties.receivers[receiver]
    scored = chunked_cross_entropy(party.arch, party.params, reading.hidden, reading.labels)
    mask = reading.mask & context.valid[:, None]
    right = scored.correct(reading.labels) | ~mask
    whole = jnp.all(right, axis=1).astype(jnp.float32)
    context.watched[f"{receiver}/accuracy"] = masked(whole, context.valid)
    return {"answer_ce": masked(scored.nll, mask)}
