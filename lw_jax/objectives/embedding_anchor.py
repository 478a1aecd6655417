"""The slots' mean lies by the receiver's mean embedding of the answer, or of the question.

docs/design.md section 10: v03 by squared error, which at embeddings' RMS of 0.0027 is 1e-7 and
gives no gradient (fault 8); v03_1 on by cosine; v06 to the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lw_jax.models.decoder import embed_tokens
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.measures import Distance, distance, masked_mean
from lw_jax.objectives.common.targets import given_slots


@dataclass(frozen=True)
class Config(Objective):
    """Distance of the slots' mean to a mean embedding of the receiver.

    Args:
        to: `answer`, its tokens and EOS; `question`, all that the receiver is asked: question and
            anchor; or `context`, the text that the latent replaces.
        distance: `cosine` (1 - cosine), `mse`, or `relative_mse` (over the target's mean square).
    """

    to: Literal["answer", "question", "context"] = "answer"
    distance: Distance = "cosine"

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per question."""
        slots = masked_mean(*given_slots(ctx, receiver))
        segment = {"answer": "answer", "question": "ask", "context": "context"}[self.to]
        each = ctx.questions if self.to == "context" else 1
        ids, lengths = (
            jnp.repeat(ctx.batch[f"{receiver}/{segment}/{part}"], each, axis=0)
            for part in ("ids", "lengths")
        )
        real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        embeds = embed_tokens(ctx.frozen.receivers[receiver].params, ids)
        target = jax.lax.stop_gradient(masked_mean(embeds, real))
        apart = distance(self.distance, jnp.repeat(slots, ctx.questions, axis=0), target)
        return Terms(masked(apart, ctx.valid & jnp.any(real, axis=1)))
