"""Perceiver resampler: learned queries read the source by cross-attention.

See docs/design.md section 4.

After Jaegle et al. 2021 and Flamingo's resampler (Alayrac et al. 2022). With `anchored` queries
each slot also starts from the mean of its own stretch of the source, so that the order need not be
learned. With `ratios` the number of slots depends on the text's length, and one bridge learns
several ratios at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.compressors.base import Compressor, only
from lw_jax.errors import UserError
from lw_jax.layers.entry import entered
from lw_jax.layers.pooling import stretch_positions, stretch_weights
from lw_jax.layers.transformer import Stack, check_heads, sinusoid
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Array, Latent, Views
from lw_jax.utils.bounds import FEW, Dropout, Heads, LayersOrNone, MlpRatio, Ratio, Slots, Width

_SLACK = 1e-3
"""39 tokens at 1.3 are 30 slots: a quotient rounded to slightly above 30 must not give 31."""


@dataclass(frozen=True)
class Config(Compressor):
    """Perceiver resampler.

    Args:
        slots: the most latent slots M.
        ratios: source tokens in a slot; several: each text draws one of them in training. Empty:
            all slots, for texts of any length.
        ratio: the ratio in an evaluation; null: the first of `ratios`.
        width: width of the resampler; null: the latent's.
        heads: attention heads of the resampler.
        encoder_layers: self-attention layers over the source before it is read.
        depth: layers of cross-attention, self-attention and MLP.
        mlp_ratio: hidden width of the MLPs over the width.
        anchored: queries start from the mean of their own stretch of the source.
        rotary: rotary embedding: attention also depends on the distance between tokens and slots,
            which makes it easy to learn to find "the name before this value".
        dropout: dropout in the MLPs.
    """

    slots: Slots
    ratios: Annotated[tuple[Ratio, ...], FEW] = ()
    ratio: Ratio | None = None
    width: Width | None = 256
    heads: Heads = 8
    encoder_layers: LayersOrNone = 0
    depth: LayersOrNone = 2
    mlp_ratio: MlpRatio = 4
    anchored: bool = True
    rotary: bool = False
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if self.width is not None:
            self.check(self.width)
        if not self.depth and not self.anchored:
            raise UserError("depth: at 0 the source is read by anchored queries alone")
        if self.ratio is not None and not self.ratios:
            raise UserError("ratio: this bridge was given no ratios; set ratios as well")

    def check(self, latent_dim: int) -> None:
        """Raises UserError if the heads do not divide the width, which may be the latent's."""
        check_heads(self.width or latent_dim, self.heads, self.rotary)

    @property
    def fixed_slots(self) -> int | None:
        """Number of slots of every text; None: it depends on the text's length."""
        return None if self.ratios else self.slots

    @property
    def sent_slots(self) -> tuple[int, int | None]:
        """The fewest and the most real slots of a text."""
        return (1 if self.ratios else self.slots), self.slots

    @property
    def several_ratios(self) -> bool:
        """Whether it learns several ratios."""
        return bool(self.ratios)

    def at_ratio(self, ratio: float) -> Config:
        """The config with `ratio` source tokens in a slot, in training and in evaluations."""
        return replace(self, ratio=None, ratios=(ratio,))

    def build(self, dims: BridgeDims) -> Perceiver:
        """The compressor."""
        return Perceiver(self, dims)


class Perceiver(nn.Module):
    """Views -> Latent with M slots; those that a row does not use are masked.

    M is `slots`, or with `ratios` the number that the longest possible row of the batch can use.
    """

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        c.check(self.dims.latent_dim)
        width = c.width or self.dims.latent_dim
        view = only(views)
        lengths = view.mask.sum(axis=1)
        encoder = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")
        x, index, at = entered(view, width, encoder, train, c.rotary)
        queries = self.param("queries", nn.initializers.normal(0.02), (c.slots, width))
        ratios = self.ratios(train)
        m = c.slots
        if ratios:
            m = min(m, ceil(x.shape[1] / min(ratios) - _SLACK))
        z = jnp.broadcast_to(queries[None, :m], (x.shape[0], m, width))
        used = self.used(lengths, ratios, m)
        if c.anchored:
            z = z + jnp.einsum("bmt,btw->bmw", stretch_weights(index, view.mask, used, m), x)
        middles = stretch_positions(lengths, used, m)
        z = z + sinusoid(middles, width)
        mask = jnp.arange(m)[None, :] < used[:, None]
        y = nn.RMSNorm(name="source_norm")(x)
        z = Stack(c.depth, c.heads, c.mlp_ratio, cross=True, dropout=c.dropout, name="resampler")(
            z, mask, y, view.mask, train, middles if c.rotary else None, at
        )
        slots = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        slots = jnp.where(mask[..., None], slots, 0.0)
        return Latent(slots, mask, lengths.astype(jnp.float32), (SHARED,) * m)

    def ratios(self, train: bool) -> tuple[float, ...]:
        """The ratios that texts may take; (): they take all slots."""
        c = self.config
        if train or not c.ratios:
            return c.ratios
        return (c.ratios[0] if c.ratio is None else c.ratio,)

    def used(self, lengths: Array, ratios: tuple[float, ...], most: int) -> Array:
        """Number of slots [B] that texts use.

        Args:
            lengths: [B] source tokens of the texts.
            ratios: the ratios to draw from.
            most: the most slots.
        """
        if not ratios:
            return jnp.full(lengths.shape, most)
        drawn = jnp.zeros(lengths.shape, jnp.int32)
        if len(ratios) > 1:
            drawn = jax.random.randint(self.make_rng("noise"), lengths.shape, 0, len(ratios))
        ratio = jnp.asarray(ratios, jnp.float32)[drawn]
        return jnp.clip(jnp.ceil(lengths / ratio - _SLACK), 1, most).astype(jnp.int32)
