"""Soft tokens: each slot becomes an input embedding of the receiver, as loud as its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.dims import ReceiverDims
from lw_jax.readers.positions import slot_positions
from lw_jax.transformer import Mlp
from lw_jax.types import Delivery, Latent


@dataclass(frozen=True)
class Config:
    """Soft tokens in the receiver's input embeddings.

    Args:
        hidden: `linear`, or `mlp` for a residual two-layer GELU MLP before it.
        mlp_ratio: hidden width of that MLP over the latent's width.
        positions: `columns` gives slots consecutive positions; `spread` spreads them over the
            length of the source.
        dropout: in the MLP.
    """

    hidden: Literal["linear", "mlp"] = "linear"
    mlp_ratio: int = 4
    positions: Literal["columns", "spread"] = "columns"
    dropout: float = 0.0


class SoftTokens(nn.Module):
    """Latent -> soft tokens [B, M, D], RMS-normed and scaled to the receiver's embeddings.

    The scale is learned (its logarithm, so that a step is a ratio), from the RMS of the receiver's
    own embeddings (SPEC section 9, fault 7).
    """

    config: Config
    dims: ReceiverDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c = self.config
        z = nn.RMSNorm(name="in_norm")(latent.slots)
        if c.hidden == "mlp":
            z = z + Mlp(c.mlp_ratio, dropout=c.dropout, name="mlp")(z, train)
        x = nn.Dense(self.dims.width, use_bias=False, name="out")(z)
        rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        loud = self.param("log_scale", nn.initializers.constant(math.log(self.dims.embed_rms)), ())
        positions, advance = slot_positions(c.positions, latent)
        embeds = x / rms * jnp.exp(loud)
        return Delivery(embeds, latent.mask, positions, advance=advance)


def build(config: Config, dims: ReceiverDims) -> SoftTokens:
    """The reader of one receiver."""
    return SoftTokens(config, dims)
