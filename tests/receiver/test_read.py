"""The packed sequence on the device: scoring and decoding see one and the same."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.generate import DecodeOptions
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.receiver import pack as packing
from lw_jax.receiver import read as reading_of
from lw_jax.receiver.pack import Segment, gather_states
from lw_jax.receiver.read import expand, head_segment, message_segment
from lw_jax.types import KV, Delivery
from tests.tiny.receiver import model, prompt

WIDTH = 24

# Run op by op, each of these would compile dozens of programs.
pack, lay_out = jax.jit(packing.pack), jax.jit(reading_of.lay_out)
read = jax.jit(reading_of.read, static_argnums=0, static_argnames="taps")
decode = jax.jit(reading_of.decode, static_argnums=(0, 4))
cross_entropy = jax.jit(chunked_cross_entropy, static_argnums=0)


def ids(seed: int, rows: int, size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(3, 300, (rows, size)), jnp.int32)


def soft(seed: int, rows: int, size: int) -> jax.Array:
    return 0.3 * normal(seed, rows, size, WIDTH)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def segments(rows: int = 3, pad: int = 0, answer: bool = True) -> list[Segment]:
    """Ragged segments; `pad` more padding columns at the end of each."""

    def part(seed: int, size: int, lengths: list[int], role: str) -> Segment:
        x = np.pad(ids(seed, rows, size), ((0, 0), (0, pad)), constant_values=7)
        return Segment(jnp.asarray(x), None, jnp.asarray(lengths), role)

    found = [
        head_segment(prompt().head, rows),
        part(1, 9, [9, 4, 6], "message"),
        part(2, 5, [3, 5, 4], "ask"),
    ]
    return [*found, part(3, 4, [4, 2, 3], "answer")] if answer else found


def test_rows_are_contiguous_with_padding_only_at_the_right() -> None:
    table = model().params["embed"]
    packed = pack(table, segments())
    for row in range(3):
        want = np.concatenate([np.asarray(s.ids[row, : s.lengths[row]]) for s in segments()])
        got = packed.h[row, : len(want)]
        chex.assert_trees_all_close(got, table[want])
        assert int(packed.lengths[row]) == len(want)
        assert not np.any(np.asarray(packed.h[row, len(want) :]))


def test_extra_padding_changes_nothing() -> None:
    """Faults 1 and 2: padding in the segments reaches neither the labels nor the states."""
    tokenizer = model()
    plain = read(tokenizer.arch, tokenizer.params, segments())
    padded = read(tokenizer.arch, tokenizer.params, segments(pad=3))
    # As the head sees them, at unit RMS: the raw stream is several times louder.
    seen, again = (
        x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))
        for x in (plain.hidden, padded.hidden[:, :4])
    )
    keep = plain.mask[..., None]
    chex.assert_trees_all_close(seen * keep, again * keep, atol=1e-5)
    assert int(plain.mask.sum()) == int(padded.mask.sum()) == 9


def test_soft_tokens_of_the_text_are_the_text() -> None:
    """A message of the text's own embeddings reads exactly as the text does."""
    tokenizer = model()
    by_ids = read(tokenizer.arch, tokenizer.params, segments())
    text = segments()[1]
    mask = jnp.arange(text.size)[None] < text.lengths[:, None]
    delivery = Delivery(embeds=tokenizer.params["embed"][text.ids], mask=mask)
    parts = segments()
    parts[1] = message_segment(delivery, 3, WIDTH)
    by_embeds = read(tokenizer.arch, tokenizer.params, parts, delivery)
    chex.assert_trees_all_equal(by_ids.hidden, by_embeds.hidden)


def test_positions_go_on_after_the_message() -> None:
    delivery = Delivery(
        embeds=soft(0, 3, 4),
        positions=jnp.broadcast_to(jnp.asarray([[0.0, 2.5, 5.0, 7.5]]), (3, 4)),
        advance=jnp.full((3,), 10.0),
    )
    parts = segments()
    parts[1] = message_segment(delivery, 3, WIDTH)
    laid = lay_out(model().params, parts, delivery)
    head = len(prompt().head)
    want = [*range(head), *[head + x for x in (0.0, 2.5, 5.0, 7.5)], *range(head + 10, head + 17)]
    np.testing.assert_allclose(laid.positions[0, : len(want)], want)


def prefix(rows: int, columns: int, mask: Any = None) -> Delivery:
    shape = (2, rows, columns, 2, 6)
    k, v = (normal(i, *shape) for i in (8, 9))
    keep = jnp.ones((rows, columns), bool) if mask is None else mask
    at = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.float32)[None], (rows, columns))
    return Delivery(kv=KV(k, v, keep, at))


def test_prefix_is_unseen_before_the_message_and_where_masked() -> None:
    tokenizer = model()
    parts = segments()
    parts[1] = message_segment(None, 3, WIDTH)
    given = prefix(3, 3)
    with_prefix = read(tokenizer.arch, tokenizer.params, parts, given, taps=(2,))
    without = read(tokenizer.arch, tokenizer.params, parts, None, taps=(2,))
    assert with_prefix.taps is not None
    assert without.taps is not None
    head = len(prompt().head)
    chex.assert_trees_all_close(with_prefix.taps[:, :, :head], without.taps[:, :, :head], atol=1e-5)
    assert float(jnp.abs(with_prefix.hidden - without.hidden).max()) > 0.1
    masked = prefix(3, 3, jnp.zeros((3, 3), bool))
    nothing = read(tokenizer.arch, tokenizer.params, parts, masked)
    chex.assert_trees_all_close(nothing.hidden, without.hidden, atol=1e-5)


def test_expand_repeats_contexts_for_their_questions() -> None:
    both = Delivery(embeds=soft(0, 2, 4), kv=prefix(2, 3).kv)
    wide = expand(both, 3)
    assert wide is not None
    assert wide.embeds is not None
    assert wide.kv is not None
    chex.assert_shape(wide.embeds, (6, 4, WIDTH))
    chex.assert_shape(wide.kv.k, (2, 6, 3, 2, 6))
    chex.assert_trees_all_equal(wide.embeds[3:], jnp.repeat(both.embeds[1:], 3, axis=0))


@pytest.mark.parametrize("how", ["text", "soft", "prefix", "both"])
def test_decoding_sees_what_scoring_sees(how: str) -> None:
    """Faults 3, 4, 5, 22: teacher-forcing what was decoded makes every token the argmax."""
    tokenizer, rows = model(), 3
    delivery = {
        "text": None,
        "soft": Delivery(embeds=soft(4, rows, 5)),
        "prefix": prefix(rows, 3),
        "both": Delivery(embeds=soft(4, rows, 5), kv=prefix(rows, 3).kv),
    }[how]
    parts = segments(answer=False)
    if how != "text":
        parts[1] = message_segment(delivery, rows, WIDTH)
    options = DecodeOptions(max_new=6, eos_ids=(tokenizer.arch.eos_ids[0],))
    out = decode(tokenizer.arch, tokenizer.params, parts, delivery, options, jax.random.key(0))
    written = Segment(out.ids, None, jnp.maximum(1, out.lengths), "answer")
    reading = read(tokenizer.arch, tokenizer.params, [*parts, written], delivery)
    scored = cross_entropy(tokenizer.arch, tokenizer.params, reading.hidden, reading.labels)
    assert bool(jnp.all(scored.correct(reading.labels) | ~reading.mask))
    changed = written.replace(ids=(out.ids + 1) % 300)
    other = read(tokenizer.arch, tokenizer.params, [*parts, changed], delivery)
    wrong = cross_entropy(tokenizer.arch, tokenizer.params, other.hidden, other.labels)
    assert not bool(jnp.all(wrong.correct(other.labels) | ~other.mask))


def test_gather_states_takes_rows_at_their_own_offsets() -> None:
    h = jnp.arange(24.0).reshape(2, 6, 2)
    got = gather_states(h, jnp.asarray([1, 3]), 2)
    chex.assert_trees_all_equal(got, jnp.stack([h[0, 1:3], h[1, 3:5]]))
    ends = gather_states(h, jnp.asarray([0, 5]), 2)
    chex.assert_trees_all_equal(ends, jnp.stack([h[0, 0:2], h[1, jnp.asarray([5, 5])]]))
