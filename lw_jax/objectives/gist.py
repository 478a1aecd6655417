"""The text's first tokens are to be had from the soft tokens, by a head (docs/design.md section 6).

The head reads what the receiver is given: a learned query for every position, cross-attention,
squared error to the receiver's own embeddings of the text that the latent replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.heads import TokenHead
from lw_jax.objectives.common.measures import distance
from lw_jax.objectives.common.targets import counted, given_slots, given_width, text_states
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Dropout, Heads, Tokens, Weight, Width

KEY = 65
"""Of the tokens that are left out of a step."""


@dataclass(frozen=True)
class Config(Objective):
    """Reconstruction of the embeddings of the text's first tokens.

    Args:
        positions: tokens that are reconstructed, from the first on.
        mask_probability: with which each of them is left out of a training step.
        width, heads: of the cross-attention.
    """

    weight: Weight = 0.02
    positions: Tokens = 48
    mask_probability: Dropout = 0.0
    width: Width = 256
    heads: Heads = 8

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads: {self.heads} do not divide the width {self.width}")

    def head(self, width: int) -> TokenHead:
        """The head, to embeddings of that width."""
        return TokenHead(self.positions, self.width, self.heads, width)

    def init(self, dims: BridgeDims, rng: Array) -> PyTree:
        """A head per receiver."""
        heads = {}
        for i, receiver in enumerate(dims.receivers):
            width = given_width(dims, receiver)
            slots, mask = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
            head = self.head(width).init(jax.random.fold_in(rng, i), slots, mask)
            heads[receiver] = head["params"]
        return heads

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """Squared error per token, over the square of the RMS of the receiver's embeddings: small
        embeddings give as much gradient as large ones (fault 8 of docs/faults.md)."""
        slots, mask = given_slots(ctx, receiver)
        text, real = (x[:, : self.positions] for x in text_states(ctx, receiver, 0))
        counts = counted(ctx, mask)[:, None] & real
        if ctx.train and self.mask_probability:
            rng = jax.random.fold_in(ctx.rng, KEY)
            counts &= jax.random.bernoulli(rng, 1.0 - self.mask_probability, counts.shape)
        params = {"params": ctx.heads[receiver]}
        made = cast(Array, self.head(text.shape[-1]).apply(params, slots, mask))
        target = text.astype(jnp.float32) / ctx.dims.receivers[receiver].embed_rms
        return Terms(masked(distance("mse", made[:, : text.shape[1]], target), counts))
