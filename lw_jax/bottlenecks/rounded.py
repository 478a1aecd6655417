"""Rounds the slots to a 16-bit float, as they are sent; the gradient passes straight through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.layers.straight_through import straight_through
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Latent
from lw_jax.wire.rounding import as_sent


@dataclass(frozen=True)
class Config(Bottleneck):
    """Rounding to a 16-bit float.

    Args:
        dtype: the type that crosses the wire.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"

    random_start: ClassVar[bool] = False

    def build(self, dims: BridgeDims) -> Rounded:
        """The bottleneck."""
        return Rounded(self)

    @property
    def codec(self) -> str:
        """The type of a slot's entries on the wire."""
        return self.dtype


class Rounded(nn.Module):
    """Slots rounded to the wire's type, kept in float32."""

    config: Config

    def __call__(self, latent: Latent, train: bool = False) -> Latent:
        sent = as_sent(latent.slots, self.config.dtype)
        return latent.replace(slots=straight_through(latent.slots, sent))  # type: ignore[attr-defined]
