"""The slots' mean points where the source states' mean points (docs/design.md section 10, v01).

A whole text in one vector (fault 16): it can be satisfied without any slot telling anything apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import COSINE, Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.heads import check_headless, linear_head, pooled
from lw_jax.objectives.measures import cosine, masked_mean
from lw_jax.objectives.targets import (
    HeadInput,
    counted,
    given_slots,
    given_width,
    source_states,
    source_width,
)
from lw_jax.types import Array, PyTree
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """1 - cosine of the slots' mean and the source states' mean.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        head: `linear` maps the slots to the source's width; `none` needs equal widths.
        head_input: `delivered`, what the receiver is given, or `pre_scale`, the latent slots
            before any reader.
        source_norm: RMS-norm the source's states first: taps and tokens then count alike, and an
            error does not depend on how loud the sender is.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    head: Literal["none", "linear"] = "none"
    head_input: HeadInput = "delivered"
    source_norm: bool = True


def init(config: Config, dims: BridgeDims, rng: Array) -> PyTree:
    """A linear head per receiver, where heads are asked for."""
    heads = {}
    target = source_width(dims, "cosine_reconstruction")
    for i, receiver in enumerate(dims.receivers):
        width = given_width(dims, receiver, config.head_input)
        if config.head == "linear":
            heads[receiver] = linear_head(jax.random.fold_in(rng, i), width, target)
        else:
            where = "objectives.cosine_reconstruction.head"
            check_headless(where, width, target, "set it to linear")
    return heads


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """1 - cosine per context."""
    slots, mask = given_slots(context, receiver, "cosine_reconstruction", config.head_input)
    head = context.heads["cosine_reconstruction"].get(receiver)
    source = masked_mean(*source_states(context, config.source_norm))
    alike = cosine(pooled(head, slots, mask), source)
    counts = counted(context, mask)
    context.watched[f"{receiver}/{COSINE}"] = masked(alike, counts)
    return {"cosine_reconstruction": masked(1.0 - alike, counts)}
