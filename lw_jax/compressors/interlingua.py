"""Interlingua: a latent of the same kind from each of several models' views of a text.

docs/design.md section 4. A frozen sentence vector is the semantic anchor. Every other view, such as
the token embeddings of one language model, enters through an adapter of its own into an alignment
transformer that all views share, whose layers attend to the anchor; learned queries then read the
slots from it. A latent is made from one view, and any receiver reads any view's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import MinLen

from lw_jax.compressors.base import Compressor
from lw_jax.errors import UserError
from lw_jax.layers.intermediates import sow
from lw_jax.layers.transformer import Attention, Mlp, Stack, check_heads, sinusoid
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Array, Features, Latent, Views
from lw_jax.utils.bounds import FEW, Dropout, Heads, Layers, MlpRatio, Name, Slots, Width
from lw_jax.utils.checks import distinct

OWN_VIEWS = "views"
"""What is sown: the slots [B, V, M, d] that each of the V views of a text gives."""


@dataclass(frozen=True)
class Config(Compressor):
    """Slots from one of several views, by an alignment transformer with an anchor.

    In training the rows of a batch take the views in turn, so in every step every receiver learns
    to read every view's latent; the slots of all views of a row are there for `view_alignment`.

    Args:
        anchor: the view with the semantic anchor (a sentence encoder's one vector, or tokens).
        views: the views that latents are made from.
        view: the one that they are made from outside training; null: the first.
        slots: latent slots M.
        width: width of the alignment transformer.
        heads: attention heads.
        depth: layers of the alignment transformer; each attends to the anchor.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: dropout in the MLPs.
    """

    anchor: Name
    views: Annotated[tuple[Name, ...], MinLen(1), FEW]
    view: Name | None = None
    slots: Slots = 32
    width: Width = 512
    heads: Heads = 8
    depth: Layers = 2
    mlp_ratio: MlpRatio = 4
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        distinct(self, "views")
        check_heads(self.width, self.heads)
        if self.anchor in self.views:
            raise UserError(f"anchor: {self.anchor!r} is one of views as well; leave it out there")
        if self.view is not None and self.view not in self.views:
            raise UserError(f"view: {self.view!r} is none of its views {', '.join(self.views)}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return (self.anchor, *self.views)

    @property
    def fixed_slots(self) -> int:
        """Number of slots of every text."""
        return self.slots

    def at_view(self, view: str) -> Self:
        """The config that makes its latents from one of its views.

        Raises:
            UserError: it has no such view.
        """
        return replace(self, view=view)

    def build(self, dims: BridgeDims) -> Interlingua:
        """The compressor."""
        return Interlingua(self, dims)


class Interlingua(nn.Module):
    """Views -> Latent with M slots, all real.

    Sows (`lw_jax.layers.intermediates`), in training:
        views: the slots [B, V, M, d] of every view.
    """

    config: Config
    dims: BridgeDims

    def setup(self) -> None:
        c = self.config
        self.enter_anchor = nn.Dense(c.width)
        self.anchor_norm = nn.RMSNorm()
        self.enter = {name: nn.Dense(c.width) for name in c.views}
        self.align = Stack(c.depth, c.heads, c.mlp_ratio, cross=True, dropout=c.dropout)
        self.queries = self.param("queries", nn.initializers.normal(0.02), (c.slots, c.width))
        self.query_norm, self.source_norm = nn.RMSNorm(), nn.RMSNorm()
        self.cross = Attention(c.heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(), Mlp(c.mlp_ratio, dropout=c.dropout)
        self.out_norm, self.leave = nn.RMSNorm(), nn.Dense(self.dims.latent_dim)

    def __call__(self, views: Views, train: bool = False) -> Latent:
        """The latent of every row, from the view of its turn (`train`), or from one view."""
        c = self.config
        anchor = views[c.anchor]
        y = self.anchor_norm(self.enter_anchor(anchor.x))
        spans = {n: views[n].mask.sum(axis=1).astype(jnp.float32) for n in c.views}
        if not (train or self.is_initializing()):
            name = c.view or c.views[0]
            slots, span = self._slots(name, views[name], y, anchor.mask, train), spans[name]
        else:
            each = [self._slots(n, views[n], y, anchor.mask, train) for n in c.views]
            sow(self, OWN_VIEWS, jnp.stack(each, axis=1))
            turn = jnp.arange(y.shape[0]) % len(c.views)
            slots = jnp.zeros_like(each[0])
            span = jnp.zeros_like(spans[c.views[0]])
            for i, name in enumerate(c.views):
                slots = jnp.where((turn == i)[:, None, None], each[i], slots)
                span = jnp.where(turn == i, spans[name], span)
        mask = jnp.ones(slots.shape[:2], bool)
        return Latent(slots, mask, span, (SHARED,) * c.slots)

    def _slots(self, name: str, view: Features, y: Array, y_mask: Array, train: bool) -> Array:
        """The slots [B, M, d] of one view.

        Args:
            name: of the view.
            view: its tokens.
            y: the anchor [B, S, W].
            y_mask: [B, S] bool, its real vectors.
            train: whether this is a training step.
        """
        c = self.config
        index = jnp.cumsum(view.mask, axis=1) - 1
        x = self.enter[name](view.x) + sinusoid(index, c.width)
        x = self.source_norm(self.align(x, view.mask, y, y_mask, train=train))
        z = jnp.broadcast_to(self.queries[None], (x.shape[0], *self.queries.shape))
        z = z + self.cross(self.query_norm(z), x, view.mask)
        z = z + self.mlp(self.mlp_norm(z), train)
        return self.leave(self.out_norm(z))
