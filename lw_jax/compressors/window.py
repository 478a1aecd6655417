"""Window pooling: every `size` source tokens become one slot, so slots grow with the text.

Pooling windows beats learned queries at equal budget in five papers (PEERS: 2510.20797,
2510.20535).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.dims import Dims
from lw_jax.transformer import Mlp, Stack, check_rotary, sinusoid
from lw_jax.types import Features, Latent, Views


@dataclass(frozen=True)
class Config:
    """Window pooling.

    Args:
        size: source tokens in a window.
        mode: `mean` averages the window; `concat` puts its tokens side by side and through an MLP.
        width, heads: of the layers.
        encoder_layers: self-attention layers over the source before pooling.
        depth: self-attention layers over the slots.
        mlp_ratio: hidden width of the MLPs over the width.
        rotary: attention sees how far apart tokens and windows are (rotary embedding).
        dropout: in the MLPs.
    """

    size: int
    mode: Literal["mean", "concat"] = "concat"
    width: int = 256
    heads: int = 8
    encoder_layers: int = 0
    depth: int = 2
    mlp_ratio: int = 4
    rotary: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_rotary(self.rotary, self.width, self.heads)


class Window(nn.Module):
    """Views -> Latent with ceil(T / size) slots."""

    config: Config
    dims: Dims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view: Features = next(iter(views.values()))
        x = nn.Dense(c.width, name="enter")(view.x)
        index = jnp.cumsum(view.mask, axis=1) - 1
        x = x + sinusoid(index, c.width)
        at = index.astype(jnp.float32) if c.rotary else None
        x = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")(
            x, view.mask, train=train, at=at
        )
        # Real tokens first: tokens of the head (masked) would shift the windows.
        order = jnp.argsort(~view.mask, axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        real = jnp.take_along_axis(view.mask, order, axis=1)
        windows = -(-x.shape[1] // c.size)
        pad = windows * c.size - x.shape[1]
        x = jnp.pad(x * real[..., None], ((0, 0), (0, pad), (0, 0)))
        real = jnp.pad(real, ((0, 0), (0, pad))).reshape(x.shape[0], windows, c.size)
        x = x.reshape(x.shape[0], windows, c.size, c.width)
        count = real.sum(axis=2)
        mean = x.sum(axis=2) / jnp.maximum(1, count)[..., None]
        if c.mode == "mean":
            z = mean
        else:
            wide = x.reshape(*x.shape[:2], c.size * c.width)
            z = mean + nn.Dense(c.width, name="concat")(wide)
            z = z + Mlp(c.mlp_ratio, name="mlp")(nn.RMSNorm(name="mlp_norm")(z), train)
        mask = count > 0
        starts = jnp.arange(windows) * c.size
        z = z + sinusoid(starts, c.width)[None]
        middles = jnp.broadcast_to(starts + (c.size - 1) / 2, mask.shape) if c.rotary else None
        z = Stack(c.depth, c.heads, c.mlp_ratio, dropout=c.dropout, name="mixer")(
            z, mask, train=train, at=middles
        )
        out = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        out = out * mask[..., None]
        return Latent(out, mask, view.mask.sum(axis=1).astype(jnp.float32), (-1,) * windows)


def build(config: Config, dims: Dims) -> Window:
    """The compressor."""
    return Window(config, dims)
