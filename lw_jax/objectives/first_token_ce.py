"""Cross-entropy of the first answer token alone, louder while the latent lags behind the text.

The first token decides most answers, and is one of many in their mean (docs/design.md section 6;
LatentWire's stages weighted it 3 to 11 beside the answer).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.objectives.base import Term, masked, mean
from lw_jax.objectives.context import Context, Pass
from lw_jax.objectives.targets import first_token
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """Cross-entropy of the first answer token that is no space.

    Args:
        weight: of this objective in the loss (the earlier systems: 3 to 11; from 12 on they
            collapsed).
        schedule: factor of the weight over the steps.
        auto_scale: at most so many times the loss: as many times as it is above that of the
            receiver that reads the text, in each batch. 1: never, and the text is not read for it.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    auto_scale: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "auto_scale")


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per question, times the scale; no gradient goes through that."""
    loss = _first(context, receiver, Pass("latent"))
    if config.auto_scale > 1:
        teacher = _first(context, receiver, Pass("text", gradient=False))
        lag = mean(loss) / jnp.maximum(mean(teacher), 1e-3)
        scale = jax.lax.stop_gradient(jnp.clip(lag, 1.0, config.auto_scale))
        context.watched[f"{receiver}/first_token_scale"] = Term(scale, jnp.float32(1.0))
        loss = Term(loss.total * scale, loss.count)
    return {"first_token_ce": loss}


def _first(context: Context, receiver: str, asked: Pass) -> Term:
    scored, counts = first_token(context, receiver, asked)
    return masked(scored.nll, counts)
