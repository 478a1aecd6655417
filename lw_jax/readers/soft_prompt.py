"""A soft prompt: learned soft tokens right before the message, the same for every text.

Prompt tuning (Lester et al. 2021) beside a wire: the prompt tells the receiver what to do with the
soft tokens that come after it. It is no part of the message, and takes none of its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.types import Delivery, Latent
from lw_jax.utils.bounds import Slots


@dataclass(frozen=True)
class Config(Reader):
    """Learned soft tokens before the message.

    Args:
        tokens: their number.
        unit: what a parameter of 1 is, in units of the RMS of the receiver's embeddings. Steps of
            Adam have the size of its rate, so with a larger unit the same rate moves them further.
    """

    tokens: Slots = 16
    unit: Annotated[float, Ge(1e-6), Le(1e6)] = 1.0

    gives_prompt: ClassVar[bool] = True

    def build(self, dims: ModelDims) -> SoftPrompt:
        """The reader of one receiver."""
        return SoftPrompt(self, dims)


class SoftPrompt(nn.Module):
    """Latent -> Delivery with a prompt [S, D], at the start as loud as real embeddings."""

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c, shape = self.config, (self.config.tokens, self.dims.width)
        learned = self.param("prompt_tokens", nn.initializers.normal(1.0 / c.unit), shape)
        return Delivery(prompt=learned * jnp.float32(c.unit * self.dims.embed_rms))
