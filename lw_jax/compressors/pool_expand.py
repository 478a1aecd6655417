"""Pool and expand: a few equal stretches of the text are averaged, and each gives several slots.

docs/design.md section 1. Everything in a stretch has to pass through one vector, so `pools`, not
`slots`, limits what crosses; more slots give the receiver more columns to read it from.

With `use: pooled` the expanded slots are there in training alone, where objectives that look at the
text's tokens ask something of each; what is sent and read in use are the pooled vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from lw_jax.compressors.base import Compressor, only
from lw_jax.errors import UserError
from lw_jax.layers.entry import entered
from lw_jax.layers.pooling import stretch_positions, stretch_weights
from lw_jax.layers.transformer import Stack, check_heads, sinusoid
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Latent, Views
from lw_jax.utils.bounds import Dropout, Heads, LayersOrNone, MlpRatio, Slots, Width


@dataclass(frozen=True)
class Config(Compressor):
    """Pool to a few vectors, expand to more slots.

    Args:
        slots: latent slots M.
        pools: stretches of the text that are averaged; each makes slots / pools of the slots.
        use: what is delivered outside training: the `expanded` slots, as in training, or the
            `pooled` ones, a slot for each stretch (trained on the expanded, used pooled).
        width: width of the layers.
        heads: attention heads.
        encoder_layers: self-attention layers over the source before pooling.
        depth: self-attention layers over the slots.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: dropout in the MLPs.
    """

    slots: Slots
    pools: Slots
    use: Literal["expanded", "pooled"] = "expanded"
    width: Width = 256
    heads: Heads = 8
    encoder_layers: LayersOrNone = 0
    depth: LayersOrNone = 2
    mlp_ratio: MlpRatio = 4
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.slots % self.pools:
            raise UserError(f"pools: {self.pools} do not divide the {self.slots} slots")

    @property
    def fixed_slots(self) -> int:
        """Number of slots of every text, as it is sent."""
        return self.slots if self.use == "expanded" else self.pools

    def build(self, dims: BridgeDims) -> PoolExpand:
        """The compressor."""
        return PoolExpand(self, dims)


class PoolExpand(nn.Module):
    """Views -> Latent with M slots, or outside training with one for each stretch, all real.

    Both go through the same mixer and the same projection.
    """

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view = only(views)
        encoder = Stack(c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, name="encoder")
        x, index, _ = entered(view, c.width, encoder, train)
        lengths = view.mask.sum(axis=1)
        pools = jnp.full_like(lengths, c.pools)
        pooled = jnp.einsum("bpt,btw->bpw", stretch_weights(index, view.mask, pools, c.pools), x)
        if c.use == "pooled" and not (train or self.is_initializing()):
            count, z = c.pools, pooled
        else:
            count, each = c.slots, c.slots // c.pools
            made = nn.Dense(each * c.width, name="expand")(nn.RMSNorm(name="pool_norm")(pooled))
            made = rearrange(made, "b p (e w) -> b (p e) w", e=each)
            z = jnp.repeat(pooled, each, axis=1) + made
        z = z + sinusoid(stretch_positions(lengths, jnp.full_like(lengths, count), count), c.width)
        mask = jnp.ones(z.shape[:2], bool)
        z = Stack(c.depth, c.heads, c.mlp_ratio, dropout=c.dropout, name="mixer")(
            z, mask, train=train
        )
        slots = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        return Latent(slots, mask, lengths.astype(jnp.float32), (SHARED,) * count)
