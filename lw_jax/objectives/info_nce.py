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
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.heads import linear_heads, pooled
from lw_jax.objectives.common.measures import masked_mean, unit
from lw_jax.objectives.common.targets import (
    counted,
    given_slots,
    given_width,
    others,
    source_states,
    source_width,
    text_states,
)
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import LayersOrNone, Temperature


@dataclass(frozen=True)
class Config(Objective):
    """InfoNCE over the contexts of a batch.

    Args:
        positive: what a context's slots are to be close to: `self`, themselves (the earlier
            systems': only repulsion is left); `receiver_text`, the receiver's mean state over the
            text; `source`, the source's mean state.
        temperature: of the softmax over cosines.
        layer: of the receiver, for `receiver_text`; 0: its embeddings.
        head: `linear` maps the slots' mean to the positive's width; `none` needs equal widths.
        source_norm: RMS-norm the source's states first: taps and tokens then count alike, and an
            error does not depend on how loud the sender is.
    """

    positive: Literal["self", "receiver_text", "source"] = "self"
    temperature: Temperature = 0.07
    layer: LayersOrNone = 0
    head: Literal["none", "linear"] = "none"
    source_norm: bool = True

    def __post_init__(self) -> None:
        if self.positive == "self" and self.head == "linear":
            raise UserError("head: positive 'self' compares slots with slots; leave it at none")

    def init(self, dims: BridgeDims, rng: Array) -> PyTree:
        """A linear head per receiver, where heads are asked for."""
        widths = {receiver: given_width(dims, receiver) for receiver in dims.receivers}
        of_source = self.positive == "source"
        sizes = {r: (w, source_width(dims) if of_source else w) for r, w in widths.items()}
        return linear_heads(rng, sizes, self.head)

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per context."""
        slots, mask = given_slots(ctx, receiver)
        anchor = unit(pooled(ctx.heads.get(receiver), slots, mask))
        counts = counted(ctx, mask)
        if self.positive == "self":
            positive = anchor
        elif self.positive == "receiver_text":
            positive = unit(masked_mean(*text_states(ctx, receiver, self.layer)))
        else:
            positive = unit(masked_mean(*source_states(ctx, self.source_norm)))
        scores = jnp.einsum("id,jd->ij", anchor, positive) / self.temperature
        own = jnp.diagonal(scores)
        negatives = others(ctx, receiver, counts)
        allowed = negatives | jnp.eye(scores.shape[0], dtype=bool)
        loss = jax.nn.logsumexp(jnp.where(allowed, scores, -1e9), axis=1) - own
        best = jnp.max(jnp.where(negatives, scores, -1e9), axis=1)
        right = masked((own > best) * 1.0, counts)
        return Terms(masked(loss, counts), watched={"info_nce_right": right})
