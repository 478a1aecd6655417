"""The source's states are to be had from the slots, by a head: their mean (v08), or each one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives.base import Objective, Terms, masked
from lw_jax.objectives.common.context import Context
from lw_jax.objectives.common.heads import TokenHead, linear_head, pooled
from lw_jax.objectives.common.measures import Distance, cosine, distance, masked_mean
from lw_jax.objectives.common.targets import (
    HeadInput,
    counted,
    given_slots,
    given_width,
    source_states,
    source_width,
)
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Heads, Tokens, Width


@dataclass(frozen=True)
class Config(Objective):
    """Reconstruction of the source's states from what the receiver is given.

    Args:
        mode: `pooled`, a linear head on the slots, their means compared; `per_token`, learned
            position queries read the slots by cross-attention, each token compared.
        distance: `mse`, `relative_mse` (over the target's mean square), `cosine` (1 - cosine).
        head_input: `delivered`, what the receiver is given, or `pre_scale`, the latent slots
            before any reader (a head can then be satisfied without moving what is delivered).
        source_norm: RMS-norm the source's states first: taps and tokens then count alike, and an
            error does not depend on how loud the sender is.
        positions: source tokens that are reconstructed, from the first on (`per_token`).
        width, heads: of the cross-attention (`per_token`).
    """

    mode: Literal["pooled", "per_token"] = "pooled"
    distance: Distance = "mse"
    head_input: HeadInput = "delivered"
    source_norm: bool = True
    positions: Tokens = 256
    width: Width = 256
    heads: Heads = 8

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads: {self.heads} do not divide the width {self.width}")

    def token_head(self, source_width: int) -> TokenHead:
        """The head of `per_token`."""
        return TokenHead(self.positions, self.width, self.heads, source_width)

    def init(self, dims: BridgeDims, rng: Array) -> PyTree:
        """A head per receiver."""
        heads = {}
        target = source_width(dims)
        for i, receiver in enumerate(dims.receivers):
            key = jax.random.fold_in(rng, i)
            width = given_width(dims, receiver, self.head_input)
            if self.mode == "pooled":
                heads[receiver] = linear_head(key, width, target)
            else:
                slots, mask = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
                head = self.token_head(target)
                heads[receiver] = head.init(key, slots, mask)["params"]
        return heads

    def terms(self, ctx: Context, receiver: str) -> Terms:
        """The distance per context (`pooled`), or per source token (`per_token`)."""
        slots, mask = given_slots(ctx, receiver, self.head_input)
        params = ctx.heads[receiver]
        states, real = source_states(ctx, self.source_norm)
        counts = counted(ctx, mask)
        if self.mode == "pooled":
            made, target = pooled(params, slots, mask), masked_mean(states, real)
        else:
            # Real tokens first: the source's own head (masked) is no content.
            first = jnp.argsort(~real, axis=1, stable=True)[:, : self.positions]
            target = jnp.take_along_axis(states, first[..., None], axis=1)
            counts = counts[:, None] & jnp.take_along_axis(real, first, axis=1)
            head = self.token_head(states.shape[-1])
            made = cast(Array, head.apply({"params": params}, slots, mask))[:, : target.shape[1]]
        loss = masked(distance(self.distance, made, target), counts)
        return Terms(loss, cosine=masked(cosine(made, target), counts))
