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
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import Distance, distance
from lw_jax.objectives.common.targets import given_slots
from lw_jax.utils.bounds import Tokens


@dataclass(frozen=True)
class Config(Objective):
    """Distance of the first soft tokens to the receiver's embeddings of the answer's beginning.

    Args:
        tokens: how many, each to its own; shorter answers have fewer.
        distance: `cosine` (1 - cosine), `relative_mse` (over the target's mean square), or `mse`.
    """

    tokens: Tokens = 1
    distance: Distance = "cosine"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per token, of every question; an answer's EOS is no target."""
        slots, mask = (x[:, : self.tokens] for x in given_slots(ctx, receiver))
        ids, lengths, start = (
            ctx.batch[f"{receiver}/answer/{part}"] for part in ("ids", "lengths", "start")
        )
        at = start[:, None] + jnp.arange(slots.shape[1])[None]
        gold = jnp.take_along_axis(ids, jnp.minimum(at, ids.shape[1] - 1), axis=1)
        embeds = embed_tokens(ctx.frozen.receivers[receiver].params, gold)
        slots, mask = (jnp.repeat(x, ctx.questions, axis=0) for x in (slots, mask))
        apart = distance(self.distance, slots, jax.lax.stop_gradient(embeds))
        counts = mask & (at < lengths[:, None] - 1) & ctx.valid[:, None]
        return Terms(masked(apart, counts))
