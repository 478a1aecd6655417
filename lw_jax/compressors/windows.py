"""Whole windows of source tokens become slots, at any of several ratios from one bridge.

Layers read the whole text, `ratio` neighbouring tokens are put side by side and mapped to a slot by
a linear map of that ratio, and more layers let the slots look at each other. `window` pools at one
size; here one bridge learns several ratios, and larger ones start from smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le, MinLen
from einops import rearrange

from lw_jax.compressors.base import Compressor, only
from lw_jax.errors import UserError
from lw_jax.layers.transformer import Stack, check_heads
from lw_jax.models.dims import BridgeDims
from lw_jax.types import SHARED, Array, Latent, Views
from lw_jax.utils.bounds import FEW, Dropout, Heads, LayersOrNone, MlpRatio, Width

WindowSize = Annotated[int, Ge(1), Le(2**10)]


@dataclass(frozen=True)
class Config(Compressor):
    """Windows of tokens side by side, at several ratios.

    Args:
        ratios: source tokens in a slot that can be asked for; a step is trained at the one that
            its curriculum names, else at `ratio`.
        ratio: of evaluations, and where nothing else is said; null: the largest.
        width: width of the layers over the tokens.
        heads: attention heads of these.
        encoder_layers: layers over the tokens.
        slot_width: width of the layers over the slots; null: `width`.
        slot_heads: attention heads of these; null: `heads`.
        depth: layers over the slots.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: dropout in the MLPs.
        phase: in training a row's first window begins with 0 to ratio - 1 empty places, drawn for
            each row, so that no token has a place of its own in its window.
        bfloat16: the layers compute in bfloat16; parameters, norms and the latent stay float32.
    """

    ratios: Annotated[tuple[WindowSize, ...], MinLen(1), FEW]
    ratio: WindowSize | None = None
    width: Width = 256
    heads: Heads = 8
    encoder_layers: LayersOrNone = 2
    slot_width: Width | None = None
    slot_heads: Heads | None = None
    depth: LayersOrNone = 2
    mlp_ratio: MlpRatio = 4
    dropout: Dropout = 0.0
    phase: bool = True
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if len(set(self.ratios)) < len(self.ratios):
            raise UserError(f"ratios: expected different ones; got {list(self.ratios)}")
        if self.ratio is not None and self.ratio not in self.ratios:
            raise UserError(f"ratio: {self.ratio} is none of the ratios {list(self.ratios)}")
        check_heads(self.width, self.heads, rotary=True)
        check_heads(*self._slots, rotary=True)

    @property
    def _slots(self) -> tuple[int, int]:
        """Width and heads of the layers over the slots."""
        return self.slot_width or self.width, self.slot_heads or self.heads

    @property
    def size(self) -> int:
        """Source tokens in a slot."""
        return max(self.ratios) if self.ratio is None else self.ratio

    @property
    def several_ratios(self) -> bool:
        """Always: also of one, which may then be named."""
        return True

    def at_ratio(self, ratio: float) -> Config:
        """The config with `ratio` source tokens in a slot, in training and in evaluations."""
        if ratio not in self.ratios:
            known = ", ".join(map(str, self.ratios))
            raise UserError(f"ratio: {ratio:g} has no map of its own; the ratios are {known}")
        return replace(self, ratio=int(ratio))

    def build(self, dims: BridgeDims) -> Windows:
        """The compressor."""
        return Windows(self, dims)


class Windows(nn.Module):
    """Views -> Latent with ceil(T / ratio) slots, with a phase one more at most."""

    config: Config
    dims: BridgeDims

    @nn.compact
    def __call__(self, views: Views, train: bool = False) -> Latent:
        c = self.config
        view = only(views)
        _, heads = c._slots
        dtype = jnp.bfloat16 if c.bfloat16 else None
        lengths = view.mask.sum(axis=1)
        # Real tokens first: tokens of the head (masked) would shift the windows.
        order = jnp.argsort(~view.mask, axis=1, stable=True)
        x = jnp.take_along_axis(view.x, order[..., None], axis=1)
        begin = jnp.zeros_like(lengths)
        if c.phase and train and c.size > 1:
            begin = jax.random.randint(self.make_rng("noise"), lengths.shape, 0, c.size)
        place = begin[:, None] + jnp.arange(x.shape[1])[None]
        real = jnp.arange(x.shape[1])[None] < lengths[:, None]
        x = nn.Dense(c.width, dtype=dtype, name="enter")(x).astype(jnp.float32)
        within = self.param("window_positions", nn.initializers.zeros, (max(c.ratios), c.width))
        x = x + within[place % c.size]
        at = jnp.arange(x.shape[1], dtype=jnp.float32)[None]
        at = jnp.broadcast_to(at, real.shape)
        x = Stack(
            c.encoder_layers, c.heads, c.mlp_ratio, dropout=c.dropout, dtype=dtype, name="encoder"
        )(x, real, train=train, at=at)
        z, mask = self._windows(x * real[..., None], begin, lengths)
        middles = jnp.arange(z.shape[1]) * c.size + (c.size - 1) / 2
        z = Stack(c.depth, heads, c.mlp_ratio, dropout=c.dropout, dtype=dtype, name="mixer")(
            z, mask, train=train, at=middles[None] - begin[:, None]
        )
        slots = nn.Dense(self.dims.latent_dim, name="leave")(nn.RMSNorm(name="out_norm")(z))
        slots = slots * mask[..., None]
        owner = (SHARED,) * slots.shape[1]
        return Latent(slots, mask, lengths.astype(jnp.float32), owner)

    def _windows(self, x: Array, begin: Array, lengths: Array) -> tuple[Array, Array]:
        """Windows of tokens side by side, mapped to slots.

        Args:
            x: tokens [B, T, W], zeros beyond the lengths.
            begin: [B] empty places before a row's first token.
            lengths: [B] tokens of the rows.

        Returns:
            Slots [B, M, S], and [B, M] bool, which of them hold a token.
        """
        c = self.config
        width, _ = c._slots
        tokens = x.shape[1]
        most = -(-tokens // c.size) + (c.size > 1 and c.phase)
        room = most * c.size
        # Token t of a row stands at place begin + t.
        source = jnp.arange(room)[None] - begin[:, None]
        inside = (source >= 0) & (source < lengths[:, None])
        laid = jnp.take_along_axis(x, jnp.clip(source, 0, tokens - 1)[..., None], axis=1)
        laid = laid * inside[..., None]
        side = rearrange(laid, "b (m s) w -> b m (s w)", s=c.size)
        kernel = self._kernels(x.shape[2], width)[c.size]
        dtype = jnp.bfloat16 if c.bfloat16 else side.dtype
        z = jnp.einsum("bmi,io->bmo", side.astype(dtype), kernel.astype(dtype))
        mask = rearrange(inside, "b (m s) -> b m s", s=c.size).any(axis=2)
        return z.astype(x.dtype), mask

    def _kernels(self, wide: int, width: int) -> dict[int, Array]:
        """The map of every ratio, [ratio * wide, width].

        That of a ratio is the map of the largest ratio which divides it, once for every part of the
        window and scaled so that sizes stay, plus a map of its own which starts at zero. So a ratio
        begins as what a smaller one has learned.
        """
        found: dict[int, Array] = {}
        for size in sorted(self.config.ratios):
            name, shape = f"window_{size}_kernel", (size * wide, width)
            base = max((n for n in found if size % n == 0), default=None)
            if base is None:
                found[size] = self.param(name, _alike(size), shape)
                continue
            times = size // base
            below = jnp.tile(found[base], (times, 1)) / times**0.5
            found[size] = below + self.param(name, nn.initializers.zeros, shape)
        return found


def _alike(size: int) -> Callable[[Array, tuple[int, int]], Array]:
    """An initialiser of a map of windows that begins as the sum of its tokens, over the root of
    their number, each mapped by the same orthogonal map."""

    def init(rng: Array, shape: tuple[int, int]) -> Array:
        one = nn.initializers.orthogonal()(rng, (shape[0] // size, shape[1]))
        return jnp.tile(one, (size, 1)) / size**0.5

    return init
