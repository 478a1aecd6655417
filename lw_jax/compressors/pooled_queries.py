"""Learned queries pool the source by one cross-attention, optionally with a gate for each slot.

docs/design.md sections 1 and 4. It is the pooling of the ByteEncoder of LatentWire (PyTorch), after
that encoder's six transformer layers over the bytes. Slots do not see each other; the perceiver
adds that.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.compressors.base import Compressor, only
from lw_jax.layers.entry import entered
from lw_jax.layers.transformer import Attention, Stack, check_heads
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Latent, Views
from lw_jax.utils.bounds import Dropout, Heads, LayersOrNone, MlpRatio, Slots, Width


@dataclass(frozen=True)
class Config(Compressor):
    """Pooling by learned queries.

    Args:
        slots: latent slots M.
        width: width of the layers.
        heads: attention heads.
        encoder_layers: self-attention layers over the source before it is pooled.
        mlp_ratio: hidden width of the MLPs over the width.
        gate: each slot takes a learned share, between 0 and 1, of what its query reads.
        dropout: dropout in the MLPs.
    """

    slots: Slots
    width: Width = 256
    heads: Heads = 8
    encoder_layers: LayersOrNone = 0
    mlp_ratio: MlpRatio = 4
    gate: bool = False
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    @property
    def fixed_slots(self) -> int:
        """Number of slots of every text."""
        return self.slots

    def build(self, dims: BridgeDims) -> PooledQueries:
        """The compressor."""
        return PooledQueries(self, dims)


class PooledQueries(nn.Module):
    """Views -> Latent with M slots, all real."""

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view = only(views)
        encoder = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")
        x, _, _ = entered(view, c.width, encoder, train)
        queries = self.param("queries", nn.initializers.normal(0.02), (c.slots, c.width))
        z = jnp.broadcast_to(queries[None], (x.shape[0], *queries.shape))
        y = nn.RMSNorm(name="source_norm")(x)
        asking = nn.RMSNorm(name="query_norm")(z)
        read = Attention(c.heads, name="cross")(asking, y, view.mask)
        if c.gate:
            # Gates what is read, not the slot: a reader norms its slots, and would undo that.
            opened = nn.Dense(1, name="gate")(nn.LayerNorm(name="gate_norm")(z + read))
            read = nn.sigmoid(opened) * read
        slots = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z + read))
        span = view.mask.sum(axis=1).astype(jnp.float32)
        mask = jnp.ones(slots.shape[:2], bool)
        return Latent(slots, mask, span, (SHARED,) * c.slots)
