"""Window pooling: every `size` source tokens become one slot, so slots grow with the text.

Five papers find that pooling windows beats learned queries at equal budget (docs/design.md section
12: arXiv:2510.20797, arXiv:2510.20535).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Ge, Le
from einops import rearrange

from lw_jax.compressors.base import Compressor, only
from lw_jax.errors import UserError
from lw_jax.layers.entry import entered
from lw_jax.layers.pooling import stretch_weights
from lw_jax.layers.transformer import Mlp, Stack, check_heads, sinusoid
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Array, Features, Latent, Views
from lw_jax.utils.bounds import (
    Dropout,
    Heads,
    LayersOrNone,
    MlpRatio,
    Names,
    Slots,
    Width,
)
from lw_jax.utils.checks import distinct


@dataclass(frozen=True)
class Config(Compressor):
    """Window pooling.

    Args:
        size: source tokens in a window.
        mode: `mean` averages the window; `concat` puts its tokens side by side and through an MLP;
            `conv` is a strided convolution, whose windows overlap, and an MLP; `hierarchical`
            merges neighbours in pairs, each level as `concat` does, until one vector is left.
        kernel: source tokens that a window of `conv` sees; null: twice its size.
        width: width of the layers.
        heads: attention heads.
        encoder_layers: self-attention layers over the source before pooling.
        depth: self-attention layers over the slots.
        mlp_ratio: hidden width of the MLPs over the width.
        rotary: rotary embedding: attention also depends on the distance between tokens and windows.
        dropout: dropout in the MLPs.
        views: names of the views to read, if there are several; windows are cut from the first
            one's tokens, and each adds the mean of its own stretch of every other view.
    """

    size: Slots
    mode: Literal["mean", "concat", "conv", "hierarchical"] = "concat"
    kernel: Annotated[int, Ge(1), Le(2**14)] | None = None
    width: Width = 256
    heads: Heads = 8
    encoder_layers: LayersOrNone = 0
    depth: LayersOrNone = 2
    mlp_ratio: MlpRatio = 4
    rotary: bool = False
    dropout: Dropout = 0.0
    views: Names = ()

    def __post_init__(self) -> None:
        if self.kernel is not None and self.kernel < self.size:
            raise UserError(f"kernel: expected at least the size {self.size}; got {self.kernel}")
        distinct(self, "views")
        check_heads(self.width, self.heads, self.rotary)
        if self.kernel is not None and self.mode != "conv":
            raise UserError(f"kernel: mode {self.mode!r} has none; leave it out, or use conv")
        if self.mode == "hierarchical" and self.size.bit_count() != 1:
            raise UserError(f"size: hierarchical halves, so use a power of two; got {self.size}")

    @property
    def seen(self) -> int:
        """Source tokens that a window of `conv` sees."""
        return 2 * self.size if self.kernel is None else self.kernel

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.views

    def build(self, dims: BridgeDims) -> Window:
        """The compressor."""
        return Window(self, dims)


def merged(
    x: Array,
    real: Array,
    size: int,
    mode: str,
    kernel: int,
    mlp_ratio: int,
    dropout: float,
    train: bool,
) -> tuple[Array, Array]:
    """Windows from tokens. Called inside a compact module, which gets the parameters.

    Args:
        x: tokens [B, n * size, W], zeros where `real` is False.
        real: [B, n * size] bool.
        size: tokens in a window.
        mode: how a window is pooled.
        kernel: tokens that a window of `conv` sees.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: dropout in the MLP.
        train: whether this is a training step.

    Returns:
        Windows [B, n, W], and [B, n] bool, which of them hold a token.
    """
    width = x.shape[-1]
    windows = rearrange(x, "b (n s) w -> b n s w", s=size)
    count = rearrange(real, "b (n s) -> b n s", s=size).sum(axis=2)
    z = windows.sum(axis=2) / jnp.maximum(1, count)[..., None]
    if mode == "concat":
        z = z + nn.Dense(width, name="concat")(rearrange(windows, "b n s w -> b n (s w)"))
    elif mode == "conv":
        before = (kernel - size) // 2
        around = ((before, kernel - size - before),)
        z = z + nn.Conv(width, (kernel,), strides=(size,), padding=around, name="conv")(x)
    if mode != "mean":
        mlp = Mlp(mlp_ratio, dropout=dropout, name="mlp")
        z = z + mlp(nn.RMSNorm(name="mlp_norm")(z), train)
    return z, count > 0


class Halving(nn.Module):
    """One level of the hierarchy: two neighbours [B, 2n, W] become one [B, n, W]."""

    mlp_ratio: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, real: Array, train: bool) -> tuple[Array, Array]:
        z, mask = merged(x, real, 2, "concat", 2, self.mlp_ratio, self.dropout, train)
        return z * mask[..., None], mask


class Window(nn.Module):
    """Views -> Latent with ceil(T / size) slots."""

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view = views[c.views[0]] if c.views else only(views)
        encoder = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")
        x, _, _ = entered(view, c.width, encoder, train, c.rotary)
        # Real tokens first: tokens of the head (masked) would shift the windows.
        order = jnp.argsort(~view.mask, axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        real = jnp.take_along_axis(view.mask, order, axis=1)
        windows = -(-x.shape[1] // c.size)
        pad = windows * c.size - x.shape[1]
        x = jnp.pad(x * real[..., None], ((0, 0), (0, pad), (0, 0)))
        real = jnp.pad(real, ((0, 0), (0, pad)))
        if c.mode == "hierarchical":
            z, mask = x, real
            for level in range(c.size.bit_length() - 1):
                halving = Halving(c.mlp_ratio, c.dropout, name=f"level_{level}")
                z, mask = halving(z, mask, train)
        else:
            z, mask = merged(x, real, c.size, c.mode, c.seen, c.mlp_ratio, c.dropout, train)
        for name in c.views[1:]:
            z = z + self._stretches(views[name], name, windows, mask, train)
        starts = jnp.arange(windows) * c.size
        z = z + sinusoid(starts, c.width)[None]
        middles = jnp.broadcast_to(starts + (c.size - 1) / 2, mask.shape) if c.rotary else None
        z = Stack(c.depth, c.heads, c.mlp_ratio, dropout=c.dropout, name="mixer")(
            z, mask, train=train, at=middles
        )
        out = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        out = out * mask[..., None]
        return Latent(out, mask, view.mask.sum(axis=1).astype(jnp.float32), (SHARED,) * windows)

    def _stretches(
        self, view: Features, name: str, windows: int, mask: Array, train: bool
    ) -> Array:
        """[B, windows, W]: what each window reads of another view of the same text.

        Args:
            view: the other view.
            name: its name, which is part of the names of its parameters.
            windows: number of windows.
            mask: [B, windows] bool, windows that hold a token of the first view.
            train: whether this is a training step.
        """
        c = self.config
        encoder = Stack(
            c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name=f"encoder_{name}"
        )
        index = jnp.cumsum(view.mask, axis=1) - 1
        x = nn.Dense(c.width, name=f"enter_{name}")(view.x) + sinusoid(index, c.width)
        x = encoder(x, view.mask, train=train)
        used = jnp.maximum(1, mask.sum(axis=1))
        weights = stretch_weights(index, view.mask, used, windows)
        read = nn.Dense(c.width, name=f"read_{name}")(jnp.einsum("bmt,btw->bmw", weights, x))
        return read * mask[..., None]
