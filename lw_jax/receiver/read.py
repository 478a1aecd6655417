"""The frozen receiver over a packed sequence: states at the answer, and answers written.

Training, scoring and decoding of every method use `lay_out`: there is no other way to build a
receiver's sequence (faults 1-5, 13, 21, 22 of docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.models.arch import Arch
from lw_jax.models.decoder import LayerInputs, Remat, run
from lw_jax.models.generate import DecodeOptions, Generation, generate
from lw_jax.models.split import embedding_table
from lw_jax.receiver.join import advance_of
from lw_jax.receiver.pack import Packed, Segment, gather_states, pack
from lw_jax.types import KV, Array, Delivery, Edits

MULTIPLE = 8
"""Questions that are read together begin and end at a multiple of this many tokens."""


@struct.dataclass
class Laid:
    """A receiver's sequence, ready to run.

    Attributes:
        packed: the packed rows.
        positions: [B, T] positions of the tokens.
        inputs: what enters the layers.
        end: [B] position of a token that would come next.
    """

    packed: Packed
    positions: Array
    inputs: LayerInputs
    end: Array


@struct.dataclass
class Reading:
    """The receiver's states where the answer is predicted.

    Attributes:
        hidden: [B, A, D] residual stream (before the final norm) at the token before each answer
            token.
        mask: [B, A] bool, which answer tokens are real.
        labels: [B, A] int32 answer tokens.
        taps: [n, B, T, D] streams after the layers asked for; None: none.
        laid: the sequence; of questions that are read together, what stands before them.
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


def prompt_segment(prompt: Array, rows: int) -> Segment:
    """The same soft tokens [S, D] in every row."""
    embeds = jnp.broadcast_to(prompt[None], (rows, *prompt.shape))
    return Segment(None, embeds, jnp.full((rows,), prompt.shape[0], jnp.int32), "prompt")


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
    packed = pack(embedding_table(params), segments)
    start = packed.starts["message"]
    soft = packed.sizes["message"]
    index = jnp.arange(packed.h.shape[1])[None, :]
    relative = index - start[:, None]
    if delivery is None:
        positions = jnp.broadcast_to(index, packed.h.shape[:2])
        return Laid(packed, positions, LayerInputs(), packed.lengths)
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
    return Laid(packed, start[:, None] + offset, inputs, packed.lengths - soft + advance)


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


def fitting(ask: Array, answer: Array, questions: int, room: int) -> Array:
    """[N] bool: which questions find room, one after another, in those of their context.

    Args:
        ask: [N] tokens of each question and anchor.
        answer: [N] tokens of each answer.
        questions: of a context, which stand together.
        room: tokens that the questions of a context have together.
    """
    sizes = (ask + answer).reshape(-1, questions)
    return (jnp.cumsum(sizes, axis=1) <= room).reshape(-1)


def read_together(
    arch: Arch,
    params: Any,
    before: Sequence[Segment],
    ask: Segment,
    answer: Segment,
    delivery: Delivery | None,
    room: int,
    *,
    attention: str = "xla",
    remat: Remat = "full",
) -> Reading:
    """`read` of several questions behind one copy of what stands before them.

    All questions of a context are laid one after another. Each sees what stands before, and itself
    up to each token; its positions go on from there, as if it were alone. So what is read is what
    `read` gives, question by question, for fewer tokens.

    Args:
        arch: the receiver.
        params: its weights.
        before: head, message and what else comes before the question, of B contexts.
        ask: question and anchor of the N = B * Q questions, those of a context together.
        answer: their answers.
        delivery: what the message delivers, of B contexts; None: nothing.
        room: tokens that the questions of a context have together; those that do not fit in are
            not read (`fitting`), and False in the mask.
        attention: implementation, see `attention.check`.
        remat: what the backward pass computes again, see `decoder.run`.
    """
    assert ask.ids is not None
    assert answer.ids is not None
    laid = lay_out(params, before, delivery)
    rows, first = laid.packed.h.shape[:2]
    questions = ask.lengths.shape[0] // rows
    limit = min(room, questions * (ask.size + answer.size))
    room = limit + -(first + limit) % MULTIPLE
    sizes = (ask.lengths + answer.lengths).astype(jnp.int32).reshape(rows, questions)
    ends = jnp.cumsum(sizes, axis=1)
    starts = ends - sizes
    place = jnp.arange(room)
    # The question of a place: as many as have ended before it.
    which = jnp.sum(ends[:, None, :] <= place[None, :, None], axis=2)
    inside = jnp.minimum(which, questions - 1)
    of = jnp.take_along_axis
    fits = of(ends, inside, axis=1) <= limit
    real = (which < questions) & fits
    within = place[None] - of(starts, inside, axis=1)
    asked = of(ask.lengths.reshape(rows, questions), inside, axis=1)
    column = jnp.where(within < asked, within, ask.size + within - asked)
    both = jnp.concatenate([ask.ids, answer.ids], axis=1)
    flat = both.reshape(rows, questions * both.shape[1])
    ids = of(flat, jnp.clip(inside * both.shape[1] + column, 0, flat.shape[1] - 1), axis=1)
    own = jnp.take(embedding_table(params), jnp.where(real, ids, 0), axis=0)
    own = jnp.where(real[..., None], own, jnp.zeros((), own.dtype))
    inputs = replace(laid.inputs, allowed=_blocks(laid.packed.lengths, first, which, real))
    out = run(
        arch,
        params,
        jnp.concatenate([laid.packed.h, own], axis=1),
        positions=jnp.concatenate([laid.positions, laid.end[:, None] + within], axis=1),
        lengths=jnp.full((rows,), first + room, jnp.int32),
        delivery=inputs,
        impl=attention,
        remat=remat,
    )
    token = jnp.arange(answer.size)[None]
    at = (starts.reshape(-1) + ask.lengths)[:, None] + token - 1
    alone = (ask.lengths[:, None] + token) == 0  # nothing is asked: what stands before predicts
    last = jnp.repeat(laid.packed.lengths, questions)[:, None] - 1
    at = jnp.where(alone, last, first + at).reshape(rows, questions * answer.size)
    hidden = of(out.h, jnp.clip(at, 0, first + room - 1)[..., None], axis=1)
    mask = (token < answer.lengths[:, None]) & (ends <= limit).reshape(-1)[:, None]
    hidden = hidden.reshape(rows * questions, answer.size, -1)
    reading = Reading(hidden, mask, answer.ids, None, laid)
    reading.check()
    return reading


def _blocks(lengths: Array, first: int, which: Array, real: Array) -> Array:
    """Which tokens each sees, where questions stand behind what they have in common.

    Args:
        lengths: [B] tokens that stand before.
        first: columns of these.
        which: [B, P] the question of every column after them.
        real: [B, P] bool, whether there is a token.

    Returns:
        [B, first + P, first + P] bool; a column without a token sees itself alone.
    """
    rows, room = which.shape
    before = jnp.arange(first)[None] < lengths[:, None]
    group = jnp.concatenate([jnp.full((rows, first), -1), which], axis=1)
    there = jnp.concatenate([before, real], axis=1)
    index = jnp.arange(first + room)
    seen = (group[:, None] == -1) | (group[:, None] == group[:, :, None])
    seen &= (index[None] <= index[:, None])[None] & there[:, None]
    return seen | jnp.eye(first + room, dtype=bool)[None]


def decode(
    arch: Arch,
    params: Any,
    segments: Sequence[Segment],
    delivery: Delivery | None,
    options: DecodeOptions,
    rng: Array,
    *,
    attention: str = "xla",
    fused: bool = False,
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
        fused: whether new tokens go through `kernels` where these fit.
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
        fused=fused,
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
        delivery.prompt,
    )


def text_message(ids: Array, lengths: Array) -> Segment:
    """The text itself, in place of the message."""
    return Segment(ids, None, lengths, "message")


def text_after(ids: Array, lengths: Array) -> Segment:
    """The text as a segment after the soft tokens.

    LoRA and adapters apply to it; the message's columns do not include it.
    """
    return Segment(ids, None, lengths, "text")
