"""Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505).

Each slot is projected to a few numbers; each is bounded, rounded to one of its L values with a
straight-through gradient, and projected up again. For an even L the bound is moved by half a step,
so that every L gives exactly L values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le, MinLen

from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.bottlenecks.codes import counts_of, masked_codes
from lw_jax.layers.intermediates import sow
from lw_jax.layers.straight_through import straight_through
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Array, Latent
from lw_jax.utils.bounds import FEW

_MARGIN = 1e-3  # keeps a saturated tanh off the rounding boundary beyond the last value
SATURATED = 0.95
"""|tanh| above which an entry counts as saturated: its slope is below 0.1 (fault 10)."""


@dataclass(frozen=True)
class Config(Bottleneck):
    """Finite scalar quantisation.

    Args:
        levels: number of values of each code in a slot, e.g. [8, 8, 8, 8, 8, 8, 8, 8].
    """

    levels: Annotated[tuple[Annotated[int, Ge(2), Le(2**15)], ...], MinLen(1), FEW] = (8,) * 8

    def build(self, dims: BridgeDims) -> Fsq:
        """The bottleneck."""
        return Fsq(self, dims.latent_dim)

    @property
    def codec(self) -> str:
        """Codes cross the wire, not slots."""
        return "codes"


def bound(z: Array, levels: tuple[int, ...]) -> tuple[Array, Array]:
    """Bounds numbers to (-L/2, L/2), with bound(0) near 0.

    Args:
        z: [..., n] numbers.
        levels: L of each of the n numbers.

    Returns:
        The bounded numbers [..., n]; rounded, they have exactly the values -(L // 2) to
        L - 1 - L // 2. And the tanh [..., n] in them.
    """
    sizes = np.asarray(levels)
    half = ((sizes - 1) * (1 - _MARGIN) / 2).astype(np.float32)
    offset = np.where(sizes % 2 == 1, 0.0, 0.5).astype(np.float32)
    rest = (1,) * (z.ndim - 1) + sizes.shape
    curve = jnp.tanh(z + np.tan(offset / half).reshape(rest))
    return curve * half.reshape(rest) - offset.reshape(rest), curve


class Fsq(nn.Module):
    """Latent -> Latent; a masked slot is zero.

    Sows (`lw_jax.layers.intermediates`):
        codes, counts: see `lw_jax.bottlenecks.codes`.
        values: [B, M, n] in [-1, 1], after rounding, with gradient.
        bounded: [B, M, n] in [-1, 1], before rounding, with gradient.
        saturation: share of the real slots' entries where the bound is flat.
    """

    config: Config
    width: int

    def setup(self) -> None:
        self.down = nn.Dense(len(self.config.levels))
        self.up = nn.Dense(self.width)

    def __call__(self, latent: Latent, train: bool = False) -> Latent:
        levels, mask = self.config.levels, latent.mask
        bounded, curve = bound(self.down(latent.slots), levels)
        rounded = straight_through(bounded, jnp.round(bounded))
        half = self._half(rounded.ndim)
        codes = masked_codes(rounded.astype(jnp.int32) + half, mask)
        sow(self, "codes", codes)
        sow(self, "counts", counts_of(codes, levels))
        sow(self, "values", rounded / half)
        sow(self, "bounded", bounded / half)
        flat = (jnp.abs(curve) > SATURATED) & mask[..., None]
        entries = jnp.maximum(1, jnp.sum(mask)) * len(levels)
        sow(self, "saturation", jnp.sum(flat) / entries)
        return self._up(latent, rounded / half)

    def slots_of(self, latent: Latent) -> Latent:
        """The latent whose codes [B, M, n] int32 are in place of its slots."""
        half = self._half(latent.slots.ndim)
        return self._up(latent, (latent.slots - half).astype(jnp.float32) / half)

    def _half(self, rank: int) -> Array:
        halves = np.asarray(self.config.levels, np.int32) // 2
        return jnp.asarray(halves.reshape((1,) * (rank - 1) + halves.shape))

    def _up(self, latent: Latent, values: Array) -> Latent:
        slots = jnp.where(latent.mask[..., None], self.up(values), 0.0)
        return latent.replace(slots=slots)  # type: ignore[attr-defined]
