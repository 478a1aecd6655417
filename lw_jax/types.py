"""The values that pass between the stages of a wire (docs/design.md section 1).

    source -> compressor -> bottleneck -> reader(s) -> frozen receiver(s)
    Views  ->        Latent            ->  Delivery

Letters in shapes: B rows, T tokens, M latent slots, d latent width, P soft tokens, C prefix
columns, L decoder layers, D receiver width, K key/value heads, h head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
PyTree = Any

SHARED = -1
"""Owner of a latent slot that every receiver reads (see `Latent.owner`)."""


@struct.dataclass
class Taps:
    """What the frozen part of a source gives: gradients go further back only to its LoRA.

    Attributes:
        states: [n, B, T, D] residual streams, n taps.
        mask: [B, T] bool, True for tokens of the content.
        ids: [B, T] int32 tokens.
    """

    states: Array
    mask: Array
    ids: Array


@struct.dataclass
class SourceTokens:
    """Texts in the tokens of one source.

    Attributes:
        ids: [B, T] int32.
        lengths: [B] int32, tokens of a row; padding comes after them.
        skip: [B] int32, tokens at the start of a row that are not content (BOS, primer).
    """

    ids: Array
    lengths: Array
    skip: Array

    @property
    def content(self) -> Array:
        """[B, T] bool: the tokens of the text itself."""
        index = jnp.arange(self.ids.shape[1])[None, :]
        return (index >= self.skip[:, None]) & (index < self.lengths[:, None])


@struct.dataclass
class Features:
    """What one view of the source text offers to the compressor.

    Attributes:
        x: [B, T, D] floats.
        mask: [B, T] bool, True where a token is real.
        ids: [B, T] int32 tokens.
    """

    x: Array
    mask: Array
    ids: Array

    def check(self) -> None:
        """Raises AssertionError unless shapes and dtypes are as listed above."""
        chex.assert_rank(self.x, 3)
        chex.assert_shape([self.mask, self.ids], self.x.shape[:2])
        chex.assert_type(self.mask, bool)


Views = Mapping[str, Features]
"""One `Features` per view: the sender's states, bytes, a sentence encoder, ..."""


@struct.dataclass
class Latent:
    """All that crosses the wire. A reader sees nothing else.

    Attributes:
        slots: [B, M, d] floats.
        mask: [B, M] bool, True where a slot is used.
        span: [B] float32, length of the source in sender tokens, over which readers may spread the
            positions of slots; or None.
        owner: one int for each slot, static: `SHARED`, or the index (receivers sorted by name) of
            the only receiver that may read it. Empty: all slots are shared.
    """

    slots: Array
    mask: Array
    span: Array | None = None
    owner: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def check(self) -> None:
        """Raises AssertionError unless shapes and dtypes are as listed above."""
        chex.assert_rank(self.slots, 3)
        rows, count = self.slots.shape[:2]
        chex.assert_shape(self.mask, (rows, count))
        chex.assert_type(self.mask, bool)
        if self.span is not None:
            chex.assert_shape(self.span, (rows,))
            chex.assert_type(self.span, jnp.float32)
        assert len(self.owner) in (0, count), f"{len(self.owner)} owners of {count} slots"


@struct.dataclass
class KV:
    """Keys and values of a prefix, one set for each decoder layer.

    Attributes:
        k: [L, B, C, K, h] keys *before* RoPE.
        v: [L, B, C, K, h] values.
        mask: [B, C] bool.
        positions: [B, C], relative to the start of the message.
        layers: the layers in which the columns are seen, static; empty: in all.
    """

    k: Array
    v: Array
    mask: Array
    positions: Array
    layers: tuple[int, ...] = struct.field(pytree_node=False, default=())


@struct.dataclass
class Lora:
    """Low-rank edits of a decoder's projections in some layers.

    The edit that is added to a projection is `scale * (x @ a) @ b`. `fan_in` and `fan_out` are
    flattened over heads.

    Attributes:
        a: for each target ("q", "k", "v", "o") an array [n, fan_in, r] over the n edited layers.
        b: for each target an array [n, r, fan_out].
        scale: factor of the edit.
        layers: the n edited layers, ascending, static.
    """

    a: Mapping[str, Array]
    b: Mapping[str, Array]
    scale: Array | float
    layers: tuple[int, ...] = struct.field(pytree_node=False, default=())


@struct.dataclass
class Blocks:
    """Blocks that run on the residual stream after some layers (multi-depth adapters).

    Attributes:
        params: parameters, a tree of arrays [n, ...] over the n layers.
        apply: `apply(params of one layer, h [B, T, D], given) -> h`, static.
        layers: the n layers, ascending, static.
        given: a tree of arrays [B, M, ...] that all blocks read, or None; the parts of a message
            are laid side by side along M.
        keys: [B] int32, how many keys of `given` each block attends to, for the account of what a
            message costs; None: none.
        heads: that attend to them, static.
    """

    params: PyTree
    apply: Callable[[PyTree, Array, PyTree], Array] = struct.field(pytree_node=False)
    layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
    given: PyTree = None
    keys: Array | None = None
    heads: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Edits:
    """Changes to a decoder's layers; None: no change.

    Attributes:
        lora: low-rank edits of projections.
        blocks: blocks after some layers.
        k_delta: [L, B, P, K, h], added to the keys of the soft tokens.
        v_delta: [L, B, P, K, h], added to the values of the soft tokens.
    """

    lora: Lora | None = None
    blocks: Blocks | None = None
    k_delta: Array | None = None
    v_delta: Array | None = None


@struct.dataclass
class Delivery:
    """What a reader hands to its frozen receiver; None: the reader gives nothing of this kind.

    Attributes:
        embeds: [B, P, D] soft tokens, which take the place of the message in the sequence.
        mask: [B, P] bool, real soft tokens first.
        positions: [B, P] positions of the soft tokens, relative to the start of the message; None:
            0, 1, ...
        kv: prefix columns of every layer, in the same place.
        advance: [B], how many positions the message takes; None: the larger of its soft tokens and
            its prefix columns.
        edits: changes to the receiver's layers.
        prompt: [S, D] soft tokens right before the message, the same for every text; they are no
            part of it.
    """

    embeds: Array | None = None
    mask: Array | None = None
    positions: Array | None = None
    kv: KV | None = None
    advance: Array | None = None
    edits: Edits | None = None
    prompt: Array | None = None

    def check(self) -> None:
        """Raises AssertionError unless shapes and dtypes are as listed above."""
        if self.embeds is not None:
            chex.assert_rank(self.embeds, 3)
            for columns in (self.mask, self.positions):
                if columns is not None:
                    chex.assert_shape(columns, self.embeds.shape[:2])
            if self.mask is not None:
                chex.assert_type(self.mask, bool)
        if self.kv is not None:
            chex.assert_rank(self.kv.k, 5)
            chex.assert_equal_shape([self.kv.k, self.kv.v])
            chex.assert_shape([self.kv.mask, self.kv.positions], self.kv.k.shape[1:3])
        if self.advance is not None:
            chex.assert_rank(self.advance, 1)
        if self.prompt is not None:
            chex.assert_rank(self.prompt, 2)
        if self.edits is not None and self.edits.k_delta is not None:
            chex.assert_rank(self.edits.k_delta, 5)
            chex.assert_equal_shape([self.edits.k_delta, self.edits.v_delta])

    def columns(self) -> int:
        """Columns that the message takes in the receiver: soft tokens plus prefix columns."""
        soft = 0 if self.embeds is None else self.embeds.shape[1]
        return soft + (0 if self.kv is None else self.kv.k.shape[2])
