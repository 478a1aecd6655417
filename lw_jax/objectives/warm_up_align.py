"""The first soft tokens lie where the answer's first tokens have their embeddings, in a warm-up.

The earlier systems aligned the first four on text batches (weight 0.5 to 1.5), where `latent_align`
aligned the first one on the others: the same distance, with a number and a kind of batch of its own
(docs/design.md section 11).
"""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.objectives import latent_align
from lw_jax.utils.bounds import Tokens
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config(latent_align.Config):
    """`latent_align` of the first four tokens, on text batches alone.

    Args:
        schedule: factor of the weight over the steps.
    """

    tokens: Tokens = 4
    schedule: Schedule = Schedule(on="text")
