"""Fitted prefix: keys and values for every layer, a linear map of each slot, in closed form.

A `calibrate` stage fits the map by ridge regression to the keys (before RoPE) and values that the
receiver itself makes of the same characters in every layer, so no gradient is needed. A column
takes part in attention as the receiver's own token would, at the position of its slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from numpy.typing import NDArray

from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader
from lw_jax.readers.positions import slot_positions
from lw_jax.types import KV, Delivery, Latent, PyTree
from lw_jax.utils.bounds import Ridge


@dataclass(frozen=True)
class Config(Reader):
    """Keys and values for every layer, fitted by a `calibrate` stage to the receiver's own.

    The slots have to be the source's features, a slot for each token: `compressor: {tokens:
    {linear: false}}`.

    Args:
        l2: ridge penalty, in shares of the features' mean square; 0 for none.
        positions: `columns` gives columns consecutive positions; `spread` spreads them over the
            length of the source.
    """

    l2: Ridge = 1e-4
    positions: Literal["columns", "spread"] = "columns"

    excludes: ClassVar[frozenset[str]] = frozenset({"keys and values of its own in every layer"})

    @property
    def random_start(self) -> bool:
        """Its map is zero until it is fitted."""
        return False

    def build(self, dims: ModelDims) -> FittedPrefix:
        """The reader of one receiver."""
        return FittedPrefix(self, dims)


class FittedPrefix(nn.Module):
    """Latent -> prefix columns in every layer of the receiver, one for each slot."""

    config: Config
    dims: ModelDims

    @nn.compact
    def __call__(self, latent: Latent, train: bool = False) -> Delivery:
        d, width = self.dims, latent.slots.shape[-1]
        shape = (d.layers, 2, d.kv_heads, d.head_dim)
        kernel = self.param("kernel", nn.initializers.zeros, (width, *shape))
        bias = self.param("bias", nn.initializers.zeros, shape)
        k, v = (
            jnp.einsum("bcd,dlkh->lbckh", latent.slots, kernel[:, :, i]) + bias[:, None, None, i]
            for i in range(2)
        )
        positions, advance = slot_positions(self.config.positions, latent)
        return Delivery(kv=KV(k, v, latent.mask, positions), advance=advance)


def fill(params: PyTree, statistics: Mapping[str, NDArray[Any]], key: str) -> PyTree:
    """The reader's parameters with a fitted map.

    Args:
        params: of the reader.
        statistics: `<key>/kernel` [d, L * 2 * K * h], `<key>/bias` [L * 2 * K * h].
        key: of the fit.
    """
    return {
        name: jnp.asarray(statistics[f"{key}/{name}"], jnp.float32).reshape(like.shape)
        for name, like in params.items()
    }
