"""Slots that are bounded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Latent


@dataclass(frozen=True)
class Config(Bottleneck):
    """Slots between two bounds.

    Args:
        limit: the largest size of an entry.
    """

    limit: float = 3.0

    def build(self, dims: BridgeDims) -> nn.Module:
        return Clipped(self.limit)


class Clipped(nn.Module):
    """Latent -> Latent."""

    limit: float

    def __call__(self, latent: Latent, train: bool = False) -> Latent:
        return replace(latent, slots=jnp.clip(latent.slots, -self.limit, self.limit))
