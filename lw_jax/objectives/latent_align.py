"""The first soft tokens lie where the answer's first tokens have their embeddings.

See docs/design.md section 6.

One token is the earlier systems' latent align (0.5 in stage A, 1 in B), four their warm-up. The
answer begins at its first token that is no space, and no BOS is among its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.models.decoder import embed_tokens
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.measures import Distance, distance
from lw_jax.objectives.targets import given_slots
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Distance of the first soft tokens to the receiver's embeddings of the answer's beginning.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        tokens: how many, each to its own; shorter answers have fewer.
        distance: `cosine` (1 - cosine), `relative_mse` (over the target's mean square), or `mse`.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    tokens: int = 1
    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """The distance per token, of every question; an answer's EOS is no target."""
    slots, mask = (x[:, : config.tokens] for x in given_slots(context, receiver, "latent_align"))
    ids, lengths, start = (
        context.batch[f"{receiver}/answer/{part}"] for part in ("ids", "lengths", "start")
    )
    at = start[:, None] + jnp.arange(slots.shape[1])[None]
    gold = jnp.take_along_axis(ids, jnp.minimum(at, ids.shape[1] - 1), axis=1)
    embeds = embed_tokens(context.frozen.receivers[receiver].params, gold)
    slots, mask = (jnp.repeat(x, context.questions, axis=0) for x in (slots, mask))
    apart = distance(config.distance, slots, jax.lax.stop_gradient(embeds))
    counts = mask & (at < lengths[:, None] - 1) & context.valid[:, None]
    return {"latent_align": masked(apart, counts)}
