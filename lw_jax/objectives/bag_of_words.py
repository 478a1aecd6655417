"""Which tokens the source holds, in any order, from the max-pooled slots.

See docs/design.md section 10, v09.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.heads import linear, linear_head
from lw_jax.objectives.common.targets import HeadInput, counted, given_slots, given_width
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Weight


@dataclass(frozen=True)
class Config(Objective):
    """Binary cross-entropy over the source's vocabulary, mean over its entries.

    Args:
        positive_weight: of the tokens that occur, against 1 for the many that do not.
        head_input: `delivered`, what the receiver is given, or `pre_scale`, the latent slots
            before any reader (a head can then be satisfied without moving what is delivered).
    """

    positive_weight: Weight = 1.0
    head_input: HeadInput = "delivered"

    def init(self, dims: BridgeDims, rng: Array) -> PyTree:
        """A linear head to the source's vocabulary per receiver."""
        if dims.source_vocab < 1:
            raise UserError("the source has no vocabulary; leave it out")
        return {
            receiver: linear_head(
                jax.random.fold_in(rng, i),
                given_width(dims, receiver, self.head_input),
                dims.source_vocab,
            )
            for i, receiver in enumerate(dims.receivers)
        }

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Nats per vocabulary entry, per context."""
        slots, mask = given_slots(ctx, receiver, self.head_input)
        highest = jnp.max(jnp.where(mask[..., None], slots, -jnp.inf), axis=1)
        counts = counted(ctx, mask)
        highest = jnp.where(counts[:, None], highest, 0.0)
        logits = linear(ctx.heads[receiver], highest).astype(jnp.float32)
        there = occurs(ctx.taps.ids, ctx.taps.mask, logits.shape[1])
        missed = self.positive_weight * jax.nn.softplus(-logits)
        entropy = jnp.where(there, missed, jax.nn.softplus(logits))
        found = jnp.sum((logits > 0) & there, axis=1) / jnp.maximum(1, jnp.sum(there, axis=1))
        loss = masked(jnp.mean(entropy, axis=1), counts)
        return Terms(loss, watched={"bag_of_words_recall": masked(found, counts)})


def occurs(ids: Array, mask: Array, vocab: int) -> Array:
    """[B, vocab] bool: which ids [B, T] stand in a row where mask [B, T] is True."""
    rows = jnp.arange(ids.shape[0])[:, None]
    none = jnp.zeros((ids.shape[0], vocab), bool)
    return none.at[rows, jnp.where(mask, ids, vocab)].set(True, mode="drop")
