"""Latent coprocessor: key and value deltas from the latent, added to the soft tokens' own K and V.

Every column then carries an input embedding *and* content for each layer, at the cost of one column
(Liu et al. 2024, "Deliberation in latent space", and docs/design.md section 5). It needs soft
tokens to add to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn

from lw_jax.layers.transformer import Mlp
from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.readers.deep_prefix import KeyValueHeads
from lw_jax.types import Delivery, Edits, Latent
from lw_jax.utils.bounds import Dropout, MlpRatioOrNone


@dataclass(frozen=True)
class Config(Reader):
    """Key and value deltas on the soft tokens' columns.

    Args:
        mlp_ratio: hidden width of the residual MLP over the latent's width; 0 for none.
        dropout: dropout in the MLP.
    """

    mlp_ratio: MlpRatioOrNone = 4
    dropout: Dropout = 0.0

    excludes: ClassVar[frozenset[str]] = frozenset({"keys and values of its own in every layer"})
    needs_embeds: ClassVar[bool] = True

    def build(self, dims: ModelDims) -> Coprocessor:
        """The reader of one receiver."""
        return Coprocessor(self, dims)


class Coprocessor(nn.Module):
    """Latent -> deltas [L, B, M, K, h]."""

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c = self.config
        z = nn.RMSNorm(name="in_norm")(latent.slots)
        if c.mlp_ratio:
            z = z + Mlp(c.mlp_ratio, dropout=c.dropout, name="mlp")(z, train)
        z = nn.RMSNorm(name="out_norm")(z)
        k, v = KeyValueHeads(self.dims, name="heads")(z)
        keep = latent.mask[None, :, :, None, None]
        return Delivery(edits=Edits(k_delta=k * keep, v_delta=v * keep))
