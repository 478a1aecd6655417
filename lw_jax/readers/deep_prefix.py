"""Deep prefix: keys and values for every layer from the latent.

There is a column for each slot, or a fixed number of columns. Li and Liang 2021 (prefix tuning),
made from the latent. Heads start at the receiver's own RMS of keys and values in each layer, which
mattered (docs/design.md section 12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.layers.transformer import Attention, Mlp
from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.readers.positions import slot_positions
from lw_jax.types import KV, Array, Delivery, Latent
from lw_jax.utils.bounds import FEW, Dropout, Heads, Layers, MlpRatioOrNone, Slots
from lw_jax.utils.checks import distinct


@dataclass(frozen=True)
class Config(Reader):
    """Keys and values for every layer.

    Args:
        length: number of columns; null: one for each slot.
        layers: the layers that see the prefix, counted from 1; empty: all.
        mlp_ratio: hidden width of the residual MLP over the latent's width; 0 for none.
        heads: heads of the cross-attention that makes a fixed `length` from the slots.
        positions: `columns` gives columns consecutive positions; `spread` spreads them over the
            length of the source.
        dropout: dropout in the MLP.
    """

    length: Slots | None = None
    layers: Annotated[tuple[Layers, ...], FEW] = ()
    mlp_ratio: MlpRatioOrNone = 4
    heads: Heads = 8
    positions: Literal["columns", "spread"] = "columns"
    dropout: Dropout = 0.0

    excludes: ClassVar[frozenset[str]] = frozenset({"keys and values of its own in every layer"})

    def __post_init__(self) -> None:
        distinct(self, "layers")

    def build(self, dims: ModelDims) -> DeepPrefix:
        """The reader of one receiver.

        Raises:
            UserError: it has no such layer.
        """
        if self.layers and max(self.layers) > dims.layers:
            raise UserError(
                f"bridge.reader.deep_prefix.layers: {list(self.layers)} are not all among the "
                f"receiver's layers 1 to {dims.layers}"
            )
        return DeepPrefix(self, dims)


class KeyValueHeads(nn.Module):
    """Columns [B, C, d] -> keys and values [L, B, C, K, h], with the receiver's key/value heads.

    Attributes:
        dims: the receiver's sizes.
        layers: the layers that have some; zeros in the others. Empty: all.
    """

    dims: ModelDims
    layers: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        d = self.dims
        own = self.layers or tuple(range(d.layers))
        shape = (len(own), z.shape[-1], d.kv_heads, d.head_dim)
        init = nn.initializers.normal(z.shape[-1] ** -0.5)
        w_k, w_v = self.param("k", init, shape), self.param("v", init, shape)
        # The RMS is a parameter of its own, so that the matrices keep unit scale.
        loud_k = [math.log(d.key_scale(i)) for i in own]
        loud_v = [math.log(d.value_scale(i)) for i in own]
        s_k = jnp.exp(self.param("log_k", lambda _: jnp.asarray(loud_k, jnp.float32)))
        s_v = jnp.exp(self.param("log_v", lambda _: jnp.asarray(loud_v, jnp.float32)))
        k = jnp.einsum("bcd,ldkh->lbckh", z, w_k) * s_k[:, None, None, None, None]
        v = jnp.einsum("bcd,ldkh->lbckh", z, w_v) * s_v[:, None, None, None, None]
        if self.layers:
            at, whole = jnp.asarray(own), (d.layers, *k.shape[1:])
            k, v = (jnp.zeros(whole, x.dtype).at[at].set(x) for x in (k, v))
        return k, v


class DeepPrefix(nn.Module):
    """Latent -> prefix columns in every layer of the receiver."""

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        c = self.config
        z = nn.RMSNorm(name="in_norm")(latent.slots)
        mask = latent.mask
        if c.length is not None:
            queries = self.param("queries", nn.initializers.normal(0.02), (c.length, z.shape[-1]))
            start = jnp.broadcast_to(queries[None], (z.shape[0], *queries.shape))
            z = start + Attention(c.heads, name="columns")(start, z, mask)
            mask = jnp.ones(z.shape[:2], bool)
        if c.mlp_ratio:
            z = z + Mlp(c.mlp_ratio, dropout=c.dropout, name="mlp")(z, train)
        z = nn.RMSNorm(name="out_norm")(z)
        layers = tuple(sorted(i - 1 for i in c.layers))
        k, v = KeyValueHeads(self.dims, layers, name="heads")(z)
        like = Latent(z, mask, latent.span)
        positions, advance = slot_positions(c.positions, like)
        return Delivery(kv=KV(k, v, mask, positions, layers), advance=advance)
