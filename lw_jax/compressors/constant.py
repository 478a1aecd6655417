"""Learned slots that see nothing: a control, or prompt tuning if the receiver also reads the text.

Lester et al. 2021. The readers make the same of these slots for every text, so any gain over an
untouched receiver is a gain without a wire (docs/design.md section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.compressors.base import Compressor, only
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Latent, Views


@dataclass(frozen=True)
class Config(Compressor):
    """The same learned slots for every text.

    Args:
        slots: latent slots M; 0 if the readers need none (LoRA alone).
    """

    slots: Annotated[int, Ge(0), Le(2**14)]

    gives_span: ClassVar[bool] = False

    @property
    def fixed_slots(self) -> int:
        """Number of slots of every text."""
        return self.slots

    def build(self, dims: BridgeDims) -> Constant:
        """The compressor."""
        return Constant(self, dims)


class Constant(nn.Module):
    """Views -> the same Latent [B, M, d] for every text. It has no span, as no text was read."""

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        rows = only(views).mask.shape[0]
        shape = (self.config.slots, self.dims.latent_dim)
        learned = jnp.zeros(shape, jnp.float32)
        if self.config.slots:
            learned = self.param("tokens", nn.initializers.normal(1.0), shape)
        slots = jnp.broadcast_to(learned[None], (rows, *shape))
        return Latent(slots, jnp.ones(slots.shape[:2], bool), None, (SHARED,) * shape[0])
