"""The frozen receiver over a packed sequence: states at the answer, and answers written.

Training, scoring and decoding of every method use `lay_out`: there is no other way to build a
receiver's sequence (faults 1-5, 13, 21, 22 of docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.models.arch import Arch
from lw_jax.models.decoder import LayerInputs, Remat, run
from lw_jax.models.generate import DecodeOptions, Generation, generate
from lw_jax.receiver.join import advance_of
from lw_jax.receiver.pack import Packed, Segment, gather_states, pack
from lw_jax.types import KV, Array, Delivery, Edits


@struct.dataclass
class Laid:
    """A receiver's sequence, ready to run.

    Attributes:
        packed: the packed rows.
        positions: [B, T] positions of the tokens.
        inputs: what enters the layers.
    """

    packed: Packed
    positions: Array
    inputs: LayerInputs


@struct.dataclass
class Reading:
    """The receiver's states where the answer is predicted.

    Attributes:
        hidden: [B, A, D] residual stream (before the final norm) at the token before each answer
            token.
        mask: [B, A] bool, which answer tokens are real.
        labels: [B, A] int32 answer tokens.
        taps: [n, B, T, D] streams after the layers asked for; None: none.
        laid: the sequence.
    """

    hidden: Array
    mask: Array
    labels: Array
    taps: Array | None
    laid: Laid

    def check(self) -> None:
        """AssertionError unless shapes and dtypes are those above."""
        chex.assert_rank(self.hidden, 3)
        chex.assert_shape([self.mask, self.labels], self.hidden.shape[:2])
        chex.assert_type([self.mask, self.labels], [bool, jnp.int32])
        if self.taps is not None:
            chex.assert_rank(self.taps, 4)


def head_segment(ids: Sequence[int], rows: int) -> Segment:
    """The same head in every row."""
    row = jnp.asarray(list(ids), jnp.int32)
    return Segment(
        jnp.broadcast_to(row[None], (rows, row.shape[0])),
        None,
        jnp.full((rows,), row.shape[0], jnp.int32),
        "head",
    )


def message_segment(delivery: Delivery | None, rows: int, width: int) -> Segment:
    """The soft tokens of a delivery; an empty segment if it has none."""
    if delivery is None or delivery.embeds is None:
        empty = jnp.zeros((rows, 0, width), jnp.float32)
        return Segment(None, empty, jnp.zeros((rows,), jnp.int32), "message")
    embeds = delivery.embeds
    lengths = jnp.full((embeds.shape[0],), embeds.shape[1], jnp.int32)
    if delivery.mask is not None:
        lengths = delivery.mask.sum(axis=1, dtype=jnp.int32)
    return Segment(None, embeds, lengths, "message")


def lay_out(params: Any, segments: Sequence[Segment], delivery: Delivery | None) -> Laid:
    """Packs segments and gives every token its position.

    Positions of tokens after the message continue from the message's end, which is
    `delivery.advance` positions after its start (by default the larger of its soft tokens and its
    prefix columns).

    Args:
        params: the receiver's weights.
        segments: the segments in order.
        delivery: what the message delivers; None: nothing.
    """
    packed = pack(params["embed"], segments)
    start = packed.starts["message"]
    soft = packed.sizes["message"]
    index = jnp.arange(packed.h.shape[1])[None, :]
    relative = index - start[:, None]
    if delivery is None:
        return Laid(packed, jnp.broadcast_to(index, packed.h.shape[:2]), LayerInputs())
    kv = delivery.kv
    if kv is not None:
        absolute = kv.positions + start[:, None]
        kv = KV(kv.k, kv.v, kv.mask, absolute, kv.layers)
    advance = advance_of(delivery, soft)
    within = relative
    slots = None
    if delivery.embeds is not None:
        size = delivery.embeds.shape[1]
        column = jnp.arange(size)[None, :]
        slots = jnp.where(column < soft[:, None], start[:, None] + column, -1)
        if delivery.positions is not None:
            at = jnp.clip(relative, 0, size - 1)
            within = jnp.take_along_axis(delivery.positions, at, axis=1)
    after = relative - soft[:, None] + advance[:, None]
    offset = jnp.where(relative < 0, relative, jnp.where(relative < soft[:, None], within, after))
    edits = delivery.edits if delivery.edits is not None else Edits()
    inputs = LayerInputs(kv=kv, message_start=start, edits=edits, slot_index=slots)
    return Laid(packed, start[:, None] + offset, inputs)


def read(
    arch: Arch,
    params: Any,
    segments: Sequence[Segment],
    delivery: Delivery | None = None,
    *,
    taps: tuple[int, ...] = (),
    attention: str = "xla",
    remat: Remat = "full",
) -> Reading:
    """Runs the frozen receiver over [head][message][ask][answer].

    The ids of the answer segment are the labels; states are taken at the tokens before them.

    Args:
        arch: the receiver.
        params: its weights.
        segments: the segments in order.
        delivery: what the message delivers; None: nothing.
        taps: numbers of layers after which the stream is also returned.
        attention: implementation, see `attention.check`.
        remat: what the backward pass computes again, see `decoder.run`.
    """
    answer = next(s for s in segments if s.role == "answer")
    assert answer.ids is not None
    laid = lay_out(params, segments, delivery)
    out = run(
        arch,
        params,
        laid.packed.h,
        positions=laid.positions,
        lengths=laid.packed.lengths,
        taps=taps,
        delivery=laid.inputs,
        impl=attention,
        remat=remat,
    )
    hidden = gather_states(out.h, laid.packed.starts["answer"] - 1, answer.size)
    mask = jnp.arange(answer.size)[None, :] < answer.lengths[:, None]
    reading = Reading(hidden, mask, answer.ids, out.taps if taps else None, laid)
    reading.check()
    return reading


def decode(
    arch: Arch,
    params: Any,
    segments: Sequence[Segment],
    delivery: Delivery | None,
    options: DecodeOptions,
    rng: Array,
    *,
    attention: str = "xla",
) -> Generation:
    """Writes an answer after [head][message][ask], laid out by the same code as `read`.

    Args:
        arch: the receiver.
        params: its weights.
        segments: the segments in order.
        delivery: what the message delivers; None: nothing.
        options: how to decode.
        rng: random key.
        attention: implementation, see `attention.check`.
    """
    laid = lay_out(params, segments, delivery)
    return generate(
        arch,
        params,
        laid.packed.h,
        positions=laid.positions,
        lengths=laid.packed.lengths,
        delivery=laid.inputs,
        options=options,
        rng=rng,
        impl=attention,
    )


def expand(delivery: Delivery | None, times: int) -> Delivery | None:
    """A delivery of B contexts, repeated for their N = B * times questions."""
    if delivery is None or times == 1:
        return delivery

    def rows(x: Array | None, axis: int) -> Array | None:
        return None if x is None else jnp.repeat(x, times, axis=axis)

    kv = delivery.kv
    if kv is not None:
        k, v = jnp.repeat(kv.k, times, axis=1), jnp.repeat(kv.v, times, axis=1)
        mask, at = (jnp.repeat(x, times, axis=0) for x in (kv.mask, kv.positions))
        kv = KV(k, v, mask, at, kv.layers)
    edits = delivery.edits
    if edits is not None:
        k_delta, v_delta = rows(edits.k_delta, 1), rows(edits.v_delta, 1)
        blocks = edits.blocks
        if blocks is not None:
            given = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), blocks.given)
            blocks = blocks.replace(given=given, keys=rows(blocks.keys, 0))  # type: ignore[attr-defined]
        edits = Edits(edits.lora, blocks, k_delta, v_delta)
    return Delivery(
        rows(delivery.embeds, 0),
        rows(delivery.mask, 0),
        rows(delivery.positions, 0),
        kv,
        rows(delivery.advance, 0),
        edits,
    )


def text_message(ids: Array, lengths: Array) -> Segment:
    """The text itself, in place of the message."""
    return Segment(ids, None, lengths, "message")


def text_after(ids: Array, lengths: Array) -> Segment:
    """The text as a segment after the soft tokens.

    LoRA and adapters apply to it; the message's columns do not include it.
    """
    return Segment(ids, None, lengths, "text")
