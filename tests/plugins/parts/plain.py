"""Soft tokens by one linear map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn

from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.types import Delivery, Latent


@dataclass(frozen=True)
class Config(Reader):
    """A linear map to the receiver's width, as loud as its embeddings."""

    gives_embeds: ClassVar[bool] = True

    def build(self, dims: ModelDims) -> nn.Module:
        return Plain(dims)


class Plain(nn.Module):
    """Latent -> soft tokens [B, M, D]."""

    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        embeds = nn.Dense(self.dims.width, name="out")(latent.slots) * self.dims.embed_rms
        return Delivery(embeds, latent.mask)
