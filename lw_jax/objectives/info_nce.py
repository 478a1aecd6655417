"""InfoNCE on mean-pooled slots: those of one text apart from those of other texts.

van den Oord et al. 2018; docs/design.md section 6. Negatives are the other contexts of the global
batch, whatever the mesh; with `accumulate` they are the other contexts of one microbatch. Questions
about one context share its slots, and rows with the same text are no negatives of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import Term, masked
from lw_jax.objectives.context import Context
from lw_jax.objectives.heads import check_headless, linear_head, pooled
from lw_jax.objectives.measures import masked_mean, unit
from lw_jax.objectives.targets import (
    counted,
    given_slots,
    given_width,
    others,
    source_states,
    source_width,
    text_states,
)
from lw_jax.types import Array, PyTree
from lw_jax.utils.checks import at_least
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class Config:
    """InfoNCE over the contexts of a batch.

    Args:
        weight: of this objective in the loss.
        schedule: factor of the weight over the steps.
        positive: what a context's slots are to be close to: `self`, themselves (the earlier
            systems': only repulsion is left); `receiver_text`, the receiver's mean state over the
            text; `source`, the source's mean state.
        temperature: of the softmax over cosines.
        layer: of the receiver, for `receiver_text`; 0: its embeddings.
        head: `linear` maps the slots' mean to the positive's width; `none` needs equal widths.
        source_norm: RMS-norm the source's states first: taps and tokens then count alike, and an
            error does not depend on how loud the sender is.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    positive: Literal["self", "receiver_text", "source"] = "self"
    temperature: float = 0.07
    layer: int = 0
    head: Literal["none", "linear"] = "none"
    source_norm: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1e-6, "temperature")
        at_least(self, 0, "layer")
        if self.positive == "self" and self.head == "linear":
            raise UserError("head: positive 'self' compares slots with slots; leave it at none")


def init(config: Config, dims: BridgeDims, rng: Array) -> PyTree:
    """A linear head per receiver, where heads are asked for."""
    heads = {}
    for i, receiver in enumerate(dims.receivers):
        width = given_width(dims, receiver)
        target = source_width(dims, "info_nce") if config.positive == "source" else width
        if config.head == "linear":
            heads[receiver] = linear_head(jax.random.fold_in(rng, i), width, target)
        else:
            check_headless("objectives.info_nce.head", width, target, "set it to linear")
    return heads


def terms(config: Config, context: Context, receiver: str) -> dict[str, Term]:
    """Nats per context."""
    slots, mask = given_slots(context, receiver, "info_nce")
    anchor = unit(pooled(context.heads["info_nce"].get(receiver), slots, mask))
    counts = counted(context, mask)
    if config.positive == "self":
        positive = anchor
    elif config.positive == "receiver_text":
        positive = unit(masked_mean(*text_states(context, receiver, config.layer)))
    else:
        positive = unit(masked_mean(*source_states(context, config.source_norm)))
    scores = jnp.einsum("id,jd->ij", anchor, positive) / config.temperature
    own = jnp.diagonal(scores)
    negatives = others(context, receiver, counts)
    allowed = negatives | jnp.eye(scores.shape[0], dtype=bool)
    loss = jax.nn.logsumexp(jnp.where(allowed, scores, -1e9), axis=1) - own
    best = jnp.max(jnp.where(negatives, scores, -1e9), axis=1)
    context.watched[f"{receiver}/info_nce_right"] = masked((own > best) * 1.0, counts)
    return {"info_nce": masked(loss, counts)}
