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
    """What a frozen source gives the trainable part: no gradient goes further back.

    states: [n, B, T, D] residual streams (n taps); mask: [B, T] bool, content only; ids: [B, T].
    """

    states: Array
    mask: Array
    ids: Array


@struct.dataclass
class SourceTokens:
    """Texts in the tokens of one source.

    Attributes:
        ids: [B, T] int32.
        lengths: [B] int32, tokens of a row; padding stands behind.
        skip: [B] int32, tokens at the start of a row that are no content (BOS, primer).
    """

    ids: Array
    lengths: Array
    skip: Array

    @property
    def content(self) -> Array:
        """[B, T] bool: which tokens are the text's own."""
        index = jnp.arange(self.ids.shape[1])[None, :]
        return (index >= self.skip[:, None]) & (index < self.lengths[:, None])


@struct.dataclass
class Features:
    """What one view of the source text offers to the compressor.

    x: [B, T, D] floats; mask: [B, T] bool, True where a token is real; ids: [B, T] int32 tokens.
    """

    x: Array
    mask: Array
    ids: Array

    def check(self) -> None:
        """AssertionError unless shapes and dtypes are those above."""
        chex.assert_rank(self.x, 3)
        chex.assert_shape([self.mask, self.ids], self.x.shape[:2])
        chex.assert_type(self.mask, bool)


Views = Mapping[str, Features]
"""One `Features` per view: the sender's states, bytes, a sentence encoder, ..."""


@struct.dataclass
class Latent:
    """All that crosses the wire. A reader sees nothing else.

    slots: [B, M, d] floats; mask: [B, M] bool; span: [B] float32 or None, how long the source was
    in sender tokens (readers may spread slot positions over it); owner: M ints, static, `SHARED`
    or the index of the one receiver, in order of their names, that may read the slot.
    """

    slots: Array
    mask: Array
    span: Array | None = None
    owner: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def check(self) -> None:
        """AssertionError unless shapes and dtypes are those above."""
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
    """Keys and values of a prefix, one set per decoder layer; keys are *before* RoPE.

    k, v: [L, B, C, K, h]; mask: [B, C] bool; positions: [B, C], relative to the message's start.
    """

    k: Array
    v: Array
    mask: Array
    positions: Array


@struct.dataclass
class Lora:
    """Low-rank edits of a decoder's projections in some layers.

    a, b: per target ("q", "k", "v", "o") arrays [n, fan_in, r] and [n, r, fan_out], stacked over
    the n edited layers (fan_in, fan_out flattened over heads); the edit added to the projection is
    `scale * (x @ a) @ b`. layers: the n edited layers, ascending, static.
    """

    a: Mapping[str, Array]
    b: Mapping[str, Array]
    scale: Array | float
    layers: tuple[int, ...] = struct.field(pytree_node=False, default=())


@struct.dataclass
class Blocks:
    """Blocks run on the residual stream after some layers (multi-depth adapters).

    params: a tree stacked [n, ...] over the n layers; given: a tree of rows [B, ...] that all of
    them read, or None; apply(params_of_layer, h [B, T, D], given) -> h.
    """

    params: PyTree
    apply: Callable[[PyTree, Array, PyTree], Array] = struct.field(pytree_node=False)
    layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
    given: PyTree = None


@struct.dataclass
class Edits:
    """Changes to a decoder's layers. kv_delta: [L, B, P, K, h] added to the slots' own K and V."""

    lora: Lora | None = None
    blocks: Blocks | None = None
    k_delta: Array | None = None
    v_delta: Array | None = None


@struct.dataclass
class Delivery:
    """What a reader hands to its frozen receiver.

    embeds: [B, P, D] soft tokens that stand in the message's place of the sequence, with mask
    [B, P] (real slots first) and positions [B, P], relative to the message's start (None: 0, 1,
    ...). kv: per-layer columns in the same place. advance: [B], how many positions the message
    takes (None: the larger of its soft tokens and its prefix columns).
    """

    embeds: Array | None = None
    mask: Array | None = None
    positions: Array | None = None
    kv: KV | None = None
    advance: Array | None = None
    edits: Edits | None = None

    def check(self) -> None:
        """AssertionError unless shapes and dtypes are those above."""
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
        if self.edits is not None and self.edits.k_delta is not None:
            chex.assert_rank(self.edits.k_delta, 5)
            chex.assert_equal_shape([self.edits.k_delta, self.edits.v_delta])

    def columns(self) -> int:
        """Receiver columns that the message occupies: soft tokens plus prefix columns."""
        soft = 0 if self.embeds is None else self.embeds.shape[1]
        return soft + (0 if self.kv is None else self.kv.k.shape[2])
