"""k-bit integers with one scale per slot, as they are sent; the gradient passes straight through.

The grid is that of the codecs `int8`, `int6`, `int4`: what leaves this bottleneck crosses the wire
unchanged. The scale follows the slot's largest entry and has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.layers.straight_through import straight_through
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Latent
from lw_jax.wire.rounding import on_grid


@dataclass(frozen=True)
class Config(Bottleneck):
    """Symmetric integers with a bfloat16 scale per slot.

    Args:
        bits: bits of an entry on the wire.
    """

    bits: Literal[4, 6, 8] = 8

    random_start: ClassVar[bool] = False

    def build(self, dims: BridgeDims) -> Integer:
        """The bottleneck."""
        return Integer(self)

    @property
    def codec(self) -> str:
        """The codec that holds these slots exactly."""
        return f"int{self.bits}"


class Integer(nn.Module):
    """Slots [B, M, d] on the grid of the integer codec, kept in float32."""

    config: Config

    def __call__(self, latent: Latent, train: bool = False) -> Latent:
        sent = on_grid(latent.slots, self.config.bits)
        return latent.replace(slots=straight_through(latent.slots, sent))  # type: ignore[attr-defined]
