"""The trainable transformer pieces that compressors and readers are built from (flax.linen)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.layers.intermediates import READS, show_reads
from lw_jax.models.rope import rotate
from lw_jax.types import Array

LONGEST_TURN = 1000.0
"""Number of tokens over which the slowest pair of rotary channels turns by one radian."""

KEPT_WEIGHTS = 2**27
"""Attention weights of a layer (half a GiB) above which they are not kept for the backward pass;
texts that are read byte by byte have that many.
"""

_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def check_heads(width: int, heads: int, rotary: bool = False) -> None:
    """Raises UserError if a width cannot be split into heads, or the heads cannot be rotated."""
    if heads > width:
        raise UserError(f"heads: {heads} are more than the width {width}")
    if rotary and width // heads % 2:
        raise UserError(
            f"rotary: turns channels in pairs, and {width} channels in {heads} heads are "
            f"{width // heads} a head; choose an even number"
        )


def _out_init(depth: int) -> Any:
    """Residual outputs start small, so that a deep stack starts near the identity."""
    return nn.initializers.variance_scaling(0.25 / max(1, depth), "fan_in", "truncated_normal")


def sinusoid(positions: Array, width: int, longest: float = 4096.0) -> Array:
    """Sinusoidal features [..., width] of positions [...] (Vaswani et al. 2017), float32."""
    half = width // 2
    rates = jnp.exp(-jnp.log(longest) * jnp.arange(half, dtype=jnp.float32) / max(1, half - 1))
    angles = jnp.einsum("...,r->...r", positions.astype(jnp.float32), rates)
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, width - table.shape[-1])])


def _turned(x: Array, positions: Array) -> Array:
    """Rotary position embedding (Su et al. 2021) of heads x [B, T, N, h] at positions [B, T]."""
    pairs = x.shape[-1] // 2
    rates = LONGEST_TURN ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    angles = positions.astype(jnp.float32)[..., None] * rates[None, None]
    return rotate(x, jnp.cos(angles), jnp.sin(angles))


class Attention(nn.Module):
    """Multi-head attention of x [B, M, W] over y [B, T, W]; keys with mask [B, T] False are unseen.

    With `at`, the positions of x [B, M] and y [B, T] in tokens of the source, whole or fractional,
    queries and keys are rotated, so that scores depend on distances (head widths must be even).

    Attributes:
        heads: attention heads.
        depth: layers of the stack, by which the start of the output is scaled.
        dtype: of products; None: that of what they are made of.
    """

    heads: int
    depth: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        y: Array,
        mask: Array,
        bias: Array | None = None,
        at: tuple[Array, Array] | None = None,
    ) -> Array:
        width = x.shape[-1]
        check_heads(width, self.heads)
        shape = (self.heads, width // self.heads)
        project = partial(
            nn.DenseGeneral, shape, use_bias=False, kernel_init=_INIT, dtype=self.dtype
        )
        q, k, v = project(name="query")(x), project(name="key")(y), project(name="value")(y)
        if at is not None:
            q, k = (_turned(z, p).astype(z.dtype) for z, p in zip((q, k), at, strict=True))
        scores = jnp.einsum("bmhe,bthe->bhmt", q, k) * shape[1] ** -0.5
        if bias is not None:
            scores = scores + bias
        scores = jnp.where(mask[:, None, None, :], scores.astype(jnp.float32), -1e9)
        weights = nn.softmax(scores, axis=-1).astype(v.dtype)
        show_reads(self, weights)
        mixed = jnp.einsum("bhmt,bthe->bmhe", weights, v)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=_out_init(self.depth),
            dtype=self.dtype,
            name="out",
        )(mixed)


class Mlp(nn.Module):
    """Two-layer GELU MLP.

    Attributes:
        ratio: hidden width over the width.
        depth: layers of the stack, by which the output's start is scaled.
        dropout: dropout of the hidden units.
        dtype: of products; None: that of what they are made of.
    """

    ratio: int = 4
    depth: int = 1
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width = x.shape[-1]
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        h = nn.gelu(dense(self.ratio * width, kernel_init=_INIT, name="up")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return dense(width, kernel_init=_out_init(self.depth), name="down")(h)


class Block(nn.Module):
    """Pre-norm block: cross-attention to y if `cross`, self-attention, MLP.

    Attributes:
        heads: attention heads.
        ratio: hidden width of the MLP over the width.
        depth: layers of the stack, by which the start of residual outputs is scaled.
        cross: whether it attends to y.
        dropout: dropout in the MLP.
        dtype: of products; None: that of what they are made of.
    """

    heads: int
    ratio: int = 4
    depth: int = 1
    cross: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        y: Array | None,
        y_mask: Array | None,
        train: bool,
        at: Array | None = None,
        y_at: Array | None = None,
    ) -> Array:
        if self.cross:
            assert y is not None and y_mask is not None
            seen = nn.RMSNorm(name="cross_norm")(x)
            where = None if at is None or y_at is None else (at, y_at)
            attend = Attention(self.heads, self.depth, self.dtype, name="cross")
            x = x + attend(seen, y, y_mask, at=where)
        h = nn.RMSNorm(name="self_norm")(x)
        where = None if at is None else (at, at)
        x = x + Attention(self.heads, self.depth, self.dtype, name="self")(h, h, mask, at=where)
        h = nn.RMSNorm(name="mlp_norm")(x)
        mlp = Mlp(self.ratio, self.depth, self.dropout, self.dtype, name="mlp")
        return x + mlp(h, train)


class Stack(nn.Module):
    """`depth` blocks, scanned: parameters are stacked on a leading axis, compiled once.

    With more attention weights than `KEPT_WEIGHTS`, a block is computed again in the backward pass
    and only its input is kept. For rotary attention it is called with `at` and `y_at`, the
    positions [B, M] of x and [B, T] of y.

    Attributes:
        depth: number of blocks.
        heads: attention heads.
        ratio: hidden width of the MLPs over the width.
        cross: whether blocks attend to y.
        dropout: dropout in the MLPs.
        dtype: of products, as in bfloat16 with float32 parameters; None: that of what they are
            made of. The stream between the blocks keeps its own.
    """

    depth: int
    heads: int
    ratio: int = 4
    cross: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        y: Array | None = None,
        y_mask: Array | None = None,
        train: bool = False,
        at: Array | None = None,
        y_at: Array | None = None,
    ) -> Array:
        if self.depth == 0:
            return x
        seen = max(x.shape[1], 0 if y is None else y.shape[1])
        again = x.shape[0] * self.heads * x.shape[1] * seen > KEPT_WEIGHTS
        stacked = nn.scan(
            nn.remat(_Step, prevent_cse=False) if again else _Step,
            variable_axes={"params": 0, READS: 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            in_axes=nn.broadcast,
        )(
            self.heads,
            self.ratio,
            self.depth,
            self.cross,
            self.dropout,
            train,
            self.dtype,
            name="blocks",
        )
        x, _ = stacked(x, (mask, y, y_mask, at, y_at))
        return x


class _Step(nn.Module):
    """One scanned block.

    Attributes:
        heads, ratio, depth, cross, dropout, dtype: as of `Block`.
        train: whether this is a training step.
    """

    heads: int
    ratio: int
    depth: int
    cross: bool
    dropout: float
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, seen: tuple[Array | None, ...]) -> Any:
        mask, y, y_mask, at, y_at = seen
        assert mask is not None
        options = self.heads, self.ratio, self.depth, self.cross, self.dropout, self.dtype
        block = Block(*options, name="block")
        return block(x, mask, y, y_mask, self.train, at, y_at), None
