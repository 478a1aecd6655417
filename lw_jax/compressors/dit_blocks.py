"""The velocity network of a DiT, and its condition (Peebles & Xie 2023, arXiv:2212.09748)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from lw_jax.layers.transformer import Attention, Mlp, sinusoid
from lw_jax.types import Array, Features

Conditioning = Literal["mean", "cross", "attention_pool"]


@struct.dataclass
class Given:
    """The condition.

    Attributes:
        tokens: [B, T, W] source tokens.
        mask: [B, T] bool, which are real.
        added: [B, W], added to the timestep embedding; None: nothing.
        summary: [B, W], the mean token, from which the length is predicted.
    """

    tokens: Array
    mask: Array
    added: Array | None
    summary: Array


class Condition(nn.Module):
    """Features [B, T, D] of the source -> Given, the same for every t.

    Attributes:
        width: W.
        heads: attention heads.
        conditioning: how the source enters, see `compressors.dit`.
    """

    width: int
    heads: int
    conditioning: Conditioning

    @nn.compact
    def __call__(self, view: Features) -> Given:
        index = jnp.cumsum(view.mask, axis=1) - 1
        tokens = nn.Dense(self.width, name="enter")(view.x) + sinusoid(index, self.width)
        tokens = nn.RMSNorm(name="source_norm")(tokens)
        real = view.mask[..., None].astype(tokens.dtype)
        summary = jnp.sum(tokens * real, axis=1) / jnp.maximum(1.0, jnp.sum(real, axis=1))
        added = None
        if self.conditioning == "mean":
            added = nn.Dense(self.width, name="pool")(summary)
        elif self.conditioning == "attention_pool":
            query = self.param("pool_queries", nn.initializers.normal(1.0), (1, self.width))
            query = jnp.broadcast_to(query[None], (tokens.shape[0], 1, self.width))
            read = Attention(self.heads, name="attend")(query, tokens, view.mask)[:, 0]
            added = nn.Dense(self.width, name="pool")(nn.RMSNorm(name="pool_norm")(read))
        return Given(tokens, view.mask, added, summary)


class Velocity(nn.Module):
    """x [B, M, D] at times t [B] -> velocity [B, M, D]; zero before training.

    Attributes:
        width: W, width of the blocks.
        heads: attention heads.
        depth: number of blocks.
        ratio: hidden width of the MLPs over the width.
        cross: whether blocks attend to the source tokens.
        out_dim: D.
    """

    width: int
    heads: int
    depth: int
    ratio: int
    cross: bool
    out_dim: int

    @nn.compact
    def __call__(self, x: Array, t: Array, mask: Array, given: Given) -> Array:
        wave = sinusoid(1000.0 * t, self.width, longest=10000.0)
        condition = nn.Dense(self.width, name="time_up")(wave)
        condition = nn.Dense(self.width, name="time_out")(nn.silu(condition))
        if given.added is not None:
            condition = condition + given.added
        condition = nn.silu(condition)
        h = nn.Dense(self.width, name="enter")(x)
        h = h + sinusoid(jnp.arange(x.shape[1]), self.width)[None]
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            in_axes=nn.broadcast,
        )(self.heads, self.ratio, self.cross, name="blocks")
        h, _ = blocks(h, (condition, mask, given))
        shift, scale = _adapted(condition, 2, self.width)
        h = _modulated(h, shift, scale)
        return nn.Dense(self.out_dim, kernel_init=nn.initializers.zeros, name="leave")(h)


class Block(nn.Module):
    """adaLN-Zero block: self-attention, cross-attention if `cross`, MLP; gates start at zero.

    Attributes:
        heads: attention heads.
        ratio: hidden width of the MLP over the width.
        cross: whether it attends to the source tokens.
    """

    heads: int
    ratio: int
    cross: bool

    @nn.compact
    def __call__(self, x: Array, seen: tuple[Array, Array, Given]) -> tuple[Array, None]:
        condition, mask, given = seen
        parts = _adapted(condition, 9 if self.cross else 6, x.shape[-1])
        shift, scale, gate = parts[:3]
        h = _modulated(x, shift, scale)
        x = x + gate * Attention(self.heads, name="self")(h, h, mask)
        if self.cross:
            shift, scale, gate = parts[6:]
            h = _modulated(x, shift, scale)
            x = x + gate * Attention(self.heads, name="cross")(h, given.tokens, given.mask)
        shift, scale, gate = parts[3:6]
        return x + gate * Mlp(self.ratio, name="mlp")(_modulated(x, shift, scale)), None


def _adapted(condition: Array, count: int, width: int) -> list[Array]:
    """`count` shifts, scales and gates [B, 1, W] of a condition [B, W], zero before training."""
    made = nn.Dense(count * width, kernel_init=nn.initializers.zeros, name="adapt")(condition)
    return jnp.split(made[:, None], count, axis=-1)


def _modulated(x: Array, shift: Array, scale: Array) -> Array:
    """Layer norm without parameters of its own, then shift and scale."""
    return nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1.0 + scale) + shift
