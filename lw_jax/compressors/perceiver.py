"""Perceiver resampler: learned queries read the source by cross-attention (SPEC section 4).

After Jaegle et al. 2021 and Flamingo's resampler (Alayrac et al. 2022). With `anchored` queries
each slot also starts from the mean of its own stretch of the source, so that order is given, not
learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.compressors.pooling import stretch_positions, stretch_weights
from lw_jax.dims import Dims
from lw_jax.transformer import Stack, sinusoid
from lw_jax.types import Features, Latent, Views


@dataclass(frozen=True)
class Config:
    """Perceiver resampler.

    Args:
        slots: latent slots M.
        width, heads: of the resampler.
        encoder_layers: self-attention layers over the source before it is read.
        depth: layers of cross-attention, self-attention and MLP.
        mlp_ratio: hidden width of the MLPs over the width.
        anchored: queries start from the mean of their own stretch of the source.
        dropout: in the MLPs.
    """

    slots: int
    width: int = 256
    heads: int = 8
    encoder_layers: int = 0
    depth: int = 2
    mlp_ratio: int = 4
    anchored: bool = True
    dropout: float = 0.0


class Perceiver(nn.Module):
    """Views -> Latent with M slots, whatever the length of the source."""

    config: Config
    dims: Dims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view: Features = next(iter(views.values()))
        lengths = view.mask.sum(axis=1)
        index = jnp.cumsum(view.mask, axis=1) - 1
        x = nn.Dense(c.width, name="enter")(view.x)
        x = x + sinusoid(index, c.width)
        x = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")(
            x, view.mask, train=train
        )
        queries = self.param("queries", nn.initializers.normal(0.02), (c.slots, c.width))
        z = jnp.broadcast_to(queries[None], (x.shape[0], c.slots, c.width))
        if c.anchored:
            z = z + jnp.einsum("bmt,btw->bmw", stretch_weights(index, view.mask, c.slots), x)
        z = z + sinusoid(stretch_positions(lengths, c.slots), c.width)
        mask = jnp.ones(z.shape[:2], bool)
        y = nn.RMSNorm(name="source_norm")(x)
        z = Stack(c.depth, c.heads, c.mlp_ratio, cross=True, dropout=c.dropout, name="resampler")(
            z, mask, y, view.mask, train
        )
        slots = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        return Latent(slots, mask, lengths.astype(jnp.float32), (-1,) * c.slots)


def build(config: Config, dims: Dims) -> Perceiver:
    """The compressor."""
    return Perceiver(config, dims)
