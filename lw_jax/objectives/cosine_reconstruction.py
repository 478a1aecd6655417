"""The slots' mean points where the source states' mean points (docs/design.md section 10, v01).

A whole text in one vector (fault 16): it can be satisfied without any slot telling anything apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.heads import linear_heads, pooled
from lw_jax.objectives.common.measures import cosine, masked_mean
from lw_jax.objectives.common.targets import (
    HeadInput,
    counted,
    given_slots,
    given_width,
    source_states,
    source_width,
)
from lw_jax.types import Array, PyTree


@dataclass(frozen=True)
class Config(Objective):
    """1 - cosine of the slots' mean and the source states' mean.

    Args:
        head: `linear` maps the slots to the source's width; `none` needs equal widths.
        head_input: `delivered`, what the receiver is given, or `pre_scale`, the latent slots
            before any reader.
        source_norm: RMS-norm the source's states first: taps and tokens then count alike, and an
            error does not depend on how loud the sender is.
    """

    head: Literal["none", "linear"] = "none"
    head_input: HeadInput = "delivered"
    source_norm: bool = True

    def init(self, dims: BridgeDims, rng: Array) -> PyTree:
        """A linear head per receiver, where heads are asked for."""
        target = source_width(dims)
        sizes = {r: (given_width(dims, r, self.head_input), target) for r in dims.receivers}
        return linear_heads(rng, sizes, self.head)

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """1 - cosine per context."""
        slots, mask = given_slots(ctx, receiver, self.head_input)
        head = ctx.heads.get(receiver)
        source = masked_mean(*source_states(ctx, self.source_norm))
        alike = cosine(pooled(head, slots, mask), source)
        counts = counted(ctx, mask)
        return Terms(masked(1.0 - alike, counts), cosine=masked(alike, counts))
