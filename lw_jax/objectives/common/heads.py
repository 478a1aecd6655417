"""Heads of objectives: trained beside the bridge, dropped when it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.layers.transformer import Attention, Mlp, sinusoid
from lw_jax.objectives.common.measures import masked_mean
from lw_jax.types import Array, PyTree


def linear_head(rng: Array, width: int, out: int) -> PyTree:
    """Fresh parameters of a linear map [..., width] -> [..., out]."""
    return nn.Dense(out).init(rng, jnp.zeros((1, width)))["params"]


def linear(params: PyTree, x: Array) -> Array:
    """The linear map of x [..., width]."""
    return cast(Array, nn.Dense(params["kernel"].shape[1]).apply({"params": params}, x))


def linear_heads(
    rng: Array, sizes: Mapping[str, tuple[int, int]], head: Literal["none", "linear"]
) -> dict[str, PyTree]:
    """A linear head for each receiver, where heads are asked for.

    Args:
        rng: random key.
        sizes: width of the slots and of the target, by receiver.
        head: `linear`, or `none`, with which both have to be equally wide.

    Raises:
        UserError: they are not.
    """
    heads = {}
    for i, (receiver, (width, target)) in enumerate(sizes.items()):
        if head == "linear":
            heads[receiver] = linear_head(jax.random.fold_in(rng, i), width, target)
        elif width != target:
            raise UserError(
                f"head: none compares slots of width {width} with a target of width {target}; "
                "set it to linear"
            )
    return heads


class TokenHead(nn.Module):
    """Slots [B, P, D] -> states [B, positions, out]: one learned query for every position.

    Attributes:
        positions: how many positions are predicted.
        width: of the attention.
        heads: of the attention.
        out: width of a state.
    """

    positions: int
    width: int
    heads: int
    out: int

    @nn.compact
    def __call__(self, slots: Array, mask: Array) -> Array:
        y = nn.RMSNorm(name="slot_norm")(nn.Dense(self.width, use_bias=False, name="enter")(slots))
        queries = self.param(
            "queries", nn.initializers.normal(0.02), (self.positions, self.width)
        ) + sinusoid(jnp.arange(self.positions), self.width)
        z = jnp.broadcast_to(queries[None], (slots.shape[0], *queries.shape))
        z = z + Attention(self.heads, name="cross")(nn.RMSNorm(name="cross_norm")(z), y, mask)
        z = z + Mlp(name="mlp")(nn.RMSNorm(name="mlp_norm")(z))
        return nn.Dense(self.out, name="leave")(nn.RMSNorm(name="out_norm")(z))


def pooled(params: PyTree | None, slots: Array, mask: Array) -> Array:
    """Mean over the slots [B, P, width] of mask [B, P], through a linear head if there is one."""
    mean = masked_mean(slots, mask)
    return linear(params, mean) if params else mean
