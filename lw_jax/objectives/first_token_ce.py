"""Cross-entropy of the first answer token alone, louder while the latent lags behind the text.

The first token decides most answers, and is one of many in their mean (docs/design.md section 6;
LatentWire's stages weighted it 3 to 11 beside the answer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.objectives.base import Objective, Term, Terms, masked, mean
from lw_jax.objectives.common.context import TEACHER, Context, Pass
from lw_jax.objectives.common.targets import first_token


@dataclass(frozen=True)
class Config(Objective):
    """Cross-entropy of the first answer token that is no space.

    Args:
        weight: of this objective in the loss (the earlier systems: 3 to 11; from 12 on they
            collapsed).
        auto_scale: at most so many times the loss: as many times as it is above that of the
            receiver that reads the text, in each batch. 1: never, and the text is not read for it.
    """

    auto_scale: Annotated[float, Ge(1), Le(1000)] = 1.0

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per question, times the scale; no gradient goes through that."""
        loss = _first(ctx, receiver, Pass("latent"))
        watched: dict[str, Term] = {}
        if self.auto_scale > 1:
            teacher = _first(ctx, receiver, TEACHER)
            lag = mean(loss) / jnp.maximum(mean(teacher), 1e-3)
            scale = jax.lax.stop_gradient(jnp.clip(lag, 1.0, self.auto_scale))
            watched["first_token_scale"] = Term(scale, jnp.float32(1.0))
            loss = Term(loss.total * scale, loss.count)
        return Terms(loss, watched)


def _first(ctx: Context, receiver: str, asked: Pass) -> Term:
    scored, counts = first_token(ctx, receiver, asked)
    return masked(scored.nll, counts)
