"""The packed sequence on the device: scoring and decoding see one and the same."""

from __future__ import annotations

from functools import cache
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
from lw_jax.types import KV, Blocks, Delivery, Edits, Lora
from tests.tiny.receiver import model, prompt

WIDTH = 24

# Run op by op, each of these would compile dozens of programs.
pack, lay_out = jax.jit(packing.pack), jax.jit(reading_of.lay_out)
read = jax.jit(reading_of.read, static_argnums=0, static_argnames="taps")
decode = jax.jit(reading_of.decode, static_argnums=(0, 4))


def ids(seed: int, rows: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 300, (rows, size)).astype(np.int32)


def soft(seed: int, rows: int, size: int) -> np.ndarray:
    return np.float32(0.3) * normal(seed, rows, size, WIDTH)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def head(rows: int) -> Segment:
    made: Segment = jax.device_get(jax.jit(lambda: head_segment(prompt().head, rows))())
    return made


def nothing_sent(rows: int) -> Segment:
    return Segment(
        None, np.zeros((rows, 0, WIDTH), np.float32), np.zeros(rows, np.int32), "message"
    )


def segments(rows: int = 3, pad: int = 0, answer: bool = True) -> list[Segment]:
    """Ragged segments; `pad` more padding columns at the end of each."""

    def part(seed: int, size: int, lengths: list[int], role: str) -> Segment:
        x = np.pad(ids(seed, rows, size), ((0, 0), (0, pad)), constant_values=7)
        return Segment(x, None, np.asarray(lengths, np.int32), role)

    found = [
        head(rows),
        part(1, 9, [9, 4, 6], "message"),
        part(2, 5, [3, 5, 4], "ask"),
    ]
    return [*found, part(3, 4, [4, 2, 3], "answer")] if answer else found


def test_rows_are_contiguous_with_padding_only_at_the_right() -> None:
    table = np.asarray(model().params["embed"])
    packed = jax.device_get(pack(table, segments()))
    for row in range(3):
        want = np.concatenate([s.ids[row, : s.lengths[row]] for s in segments()])
        got = packed.h[row, : len(want)]
        chex.assert_trees_all_close(got, table[want])
        assert int(packed.lengths[row]) == len(want)
        assert not np.any(packed.h[row, len(want) :])


def test_extra_padding_changes_nothing() -> None:
    """Faults 1 and 2: padding in the segments reaches neither the labels nor the states."""
    tokenizer = model()
    plain, padded = (
        jax.device_get(read(tokenizer.arch, tokenizer.params, segments(pad=pad))) for pad in (0, 3)
    )
    # As the head sees them, at unit RMS: the raw stream is several times louder.
    seen, again = (
        x / np.sqrt(np.mean(x**2, -1, keepdims=True)) for x in (plain.hidden, padded.hidden[:, :4])
    )
    keep = plain.mask[..., None]
    chex.assert_trees_all_close(seen * keep, again * keep, atol=1e-5)
    assert int(plain.mask.sum()) == int(padded.mask.sum()) == 9


def test_soft_tokens_of_the_text_are_the_text() -> None:
    """A message of the text's own embeddings reads exactly as the text does."""
    tokenizer = model()
    by_ids = read(tokenizer.arch, tokenizer.params, segments())
    text = segments()[1]
    mask = np.arange(text.size)[None] < text.lengths[:, None]
    delivery = Delivery(embeds=np.asarray(tokenizer.params["embed"])[text.ids], mask=mask)
    parts = segments()
    parts[1] = message_segment(delivery, 3, WIDTH)
    by_embeds = read(tokenizer.arch, tokenizer.params, parts, delivery)
    chex.assert_trees_all_equal(by_ids.hidden, by_embeds.hidden)


def test_positions_go_on_after_the_message() -> None:
    delivery = Delivery(
        embeds=soft(0, 3, 4),
        positions=np.broadcast_to(np.float32([[0.0, 2.5, 5.0, 7.5]]), (3, 4)),
        advance=np.full((3,), 10.0, np.float32),
    )
    parts = segments()
    parts[1] = message_segment(delivery, 3, WIDTH)
    laid = lay_out(model().params, parts, delivery)
    head = len(prompt().head)
    want = [*range(head), *[head + x for x in (0.0, 2.5, 5.0, 7.5)], *range(head + 10, head + 17)]
    np.testing.assert_allclose(np.asarray(laid.positions)[0, : len(want)], want)


def prefix(rows: int, columns: int, mask: Any = None) -> Delivery:
    shape = (2, rows, columns, 2, 6)
    k, v = (normal(i, *shape) for i in (8, 9))
    keep = np.ones((rows, columns), bool) if mask is None else mask
    at = np.broadcast_to(np.arange(columns, dtype=np.float32)[None], (rows, columns))
    return Delivery(kv=KV(k, v, keep, at))


def test_prefix_is_unseen_before_the_message_and_where_masked() -> None:
    tokenizer = model()
    parts = segments()
    parts[1] = nothing_sent(3)
    with_prefix, masked, without = (
        jax.device_get(read(tokenizer.arch, tokenizer.params, parts, given, taps=(2,)))
        for given in (prefix(3, 3), prefix(3, 3, np.zeros((3, 3), bool)), None)
    )
    assert with_prefix.taps is not None
    assert without.taps is not None
    head = len(prompt().head)
    chex.assert_trees_all_close(with_prefix.taps[:, :, :head], without.taps[:, :, :head], atol=1e-5)
    assert np.abs(with_prefix.hidden - without.hidden).max() > 0.1
    chex.assert_trees_all_close(masked.hidden, without.hidden, atol=1e-5)


def test_expand_repeats_contexts_for_their_questions() -> None:
    both = Delivery(embeds=soft(0, 2, 4), kv=prefix(2, 3).kv)
    wide = jax.device_get(jax.jit(expand, static_argnums=1)(both, 3))
    assert wide is not None
    assert wide.embeds is not None
    assert wide.kv is not None
    chex.assert_shape(wide.embeds, (6, 4, WIDTH))
    chex.assert_shape(wide.kv.k, (2, 6, 3, 2, 6))
    chex.assert_trees_all_equal(wide.embeds[3:], np.repeat(both.embeds[1:], 3, axis=0))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "how", ["text", pytest.param("soft", marks=SLOW), pytest.param("prefix", marks=SLOW), "both"]
)
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
        parts[1] = nothing_sent(rows) if how == "prefix" else message_segment(delivery, rows, WIDTH)
    options = DecodeOptions(max_new=6, eos_ids=(tokenizer.arch.eos_ids[0],))
    key = jax.random.key(0)
    out = jax.device_get(decode(tokenizer.arch, tokenizer.params, parts, delivery, options, key))

    @jax.jit
    def correct(answer: Segment) -> jax.Array:
        found = reading_of.read(tokenizer.arch, tokenizer.params, [*parts, answer], delivery)
        scored = chunked_cross_entropy(tokenizer.arch, tokenizer.params, found.hidden, found.labels)
        return jnp.all(scored.correct(found.labels) | ~found.mask)

    written = Segment(out.ids, None, np.maximum(1, out.lengths), "answer")
    assert correct(written)
    assert not correct(written.replace(ids=(out.ids + 1) % 300))


def test_gather_states_takes_rows_at_their_own_offsets() -> None:
    h = np.arange(24.0, dtype=np.float32).reshape(2, 6, 2)
    of = jax.jit(gather_states, static_argnums=2)
    got = of(h, np.asarray([1, 3]), 2)
    np.testing.assert_array_equal(got, np.stack([h[0, 1:3], h[1, 3:5]]))
    ends = of(h, np.asarray([0, 5]), 2)
    np.testing.assert_array_equal(ends, np.stack([h[0, 0:2], h[1, np.asarray([5, 5])]]))


def test_questions_that_just_fit() -> None:
    """Room for 9 tokens of each context: 4 + 5, then one more; 3, 5 and 1."""
    ask, answer = np.asarray([1, 2, 1, 2, 4, 1]), np.asarray([3, 3, 0, 1, 1, 0])
    fitting = jax.jit(reading_of.fitting, static_argnums=2)
    assert fitting(ask, answer, 3, 9).tolist() == [True, True, False, True, True, True]
    assert fitting(ask, answer, 3, 8).tolist() == [True, False, False, True, True, False]


def test_which_tokens_questions_behind_one_message_see() -> None:
    """Two rows of 3 columns before, of which the second has 2, and questions of 2 and 1 tokens."""
    which = np.asarray([[0, 0, 1, 2], [0, 1, 2, 2]])
    real = np.asarray([[True, True, True, False], [True, True, False, False]])
    lengths = [3, 2]
    blocks = jax.jit(reading_of._blocks, static_argnums=1)
    found = np.asarray(blocks(np.asarray(lengths), 3, which, real))
    wanted = np.zeros((2, 7, 7), bool)
    for row in range(2):
        group = [-1, -1, -1, *which[row].tolist()]
        there = [i < lengths[row] for i in range(3)] + real[row].tolist()
        for query in range(7):
            for key in range(7):
                reached = key <= query and (group[key] == -1 or group[key] == group[query])
                wanted[row, query, key] = (there[key] and reached) or key == query
    np.testing.assert_array_equal(found, wanted)


def test_positions_of_every_kind_of_message_by_hand() -> None:
    """A head of 2, a message, and a question of 2, laid out for two rows of other lengths."""
    params = {"embed": np.arange(40.0, dtype=np.float32).reshape(10, 4)}
    ask = Segment(np.asarray([[5, 6], [7, 8]]), None, np.asarray([2, 1]), "ask")
    embeds = -np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    mask = np.asarray([[True, True, True], [True, False, False]])

    @jax.jit
    def all_laid(delivery: Delivery | None) -> reading_of.Laid:
        parts = [head_segment((3, 4), 2), message_segment(delivery, 2, 4), ask]
        return reading_of.lay_out(params, parts, delivery)

    def laid(delivery: Delivery | None) -> reading_of.Laid:
        found: reading_of.Laid = jax.device_get(all_laid(delivery))
        return found

    soft = laid(Delivery(embeds, mask))
    assert soft.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert soft.positions[1, :4].tolist() == [0, 1, 2, 3]
    assert soft.end.tolist() == [7, 4] == soft.packed.lengths.tolist()
    assert soft.inputs.slot_index is not None and soft.inputs.message_start is not None
    assert soft.inputs.slot_index.tolist() == [[2, 3, 4], [2, -1, -1]]
    assert soft.inputs.message_start.tolist() == [2, 2]
    rows = params["embed"]
    np.testing.assert_array_equal(soft.packed.h[0], np.r_[rows[[3, 4]], embeds[0], rows[[5, 6]]])
    zeros = np.zeros((3, 4))
    np.testing.assert_array_equal(
        soft.packed.h[1], np.r_[rows[[3, 4]], embeds[1, :1], rows[[7]], zeros]
    )

    at = np.float32([[0.5, 2.0, 4.0], [1.5, 9.0, 9.0]])
    values, ones = np.zeros((1, 2, 4, 1, 2), np.float32), np.ones((2, 4), np.float32)
    kv = KV(values, values, np.ones((2, 4), bool), ones, (0,))
    far = laid(Delivery(embeds, mask, at, kv, np.float32([7.0, 5.0])))
    assert far.positions[0].tolist() == [0, 1, 2.5, 4, 6, 9, 10]
    assert far.positions[1, :4].tolist() == [0, 1, 3.5, 7]
    assert far.end.tolist() == [11, 8]
    assert far.inputs.kv is not None and far.inputs.kv.layers == (0,)
    assert far.inputs.kv.positions.tolist() == [[3.0] * 4] * 2

    columns = laid(Delivery(kv=kv))
    assert columns.positions[0, :4].tolist() == [0, 1, 6, 7]
    assert columns.end.tolist() == [8, 7]
    assert columns.inputs.slot_index is None
    nothing = laid(None)
    assert nothing.positions[0, :4].tolist() == [0, 1, 2, 3]
    assert nothing.end.tolist() == [4, 3]


def test_all_that_is_delivered_is_repeated_for_its_questions() -> None:
    """Each array along the axis of its rows; axes of other sizes tell them apart."""
    rows, each = 2, 3
    kv = KV(
        normal(1, 5, rows, 4, 1, 2),
        normal(2, 5, rows, 4, 1, 2),
        normal(3, rows, 4) > 0,
        normal(4, rows, 4),
        (1, 2),
    )
    blocks = Blocks(
        {"w": normal(5, 2)}, max, (1,), {"x": normal(6, rows, 3)}, np.asarray([3, 4]), 2
    )
    lora = Lora({}, {}, 1.0)
    edits = Edits(lora, blocks, normal(7, 5, rows, 3, 1, 2), normal(8, 5, rows, 3, 1, 2))
    given = Delivery(
        normal(9, rows, 3, 4),
        normal(10, rows, 3) > 0,
        normal(11, rows, 3),
        kv,
        np.float32([1.0, 2.0]),
        edits,
        normal(12, 1, 4),
    )
    found = jax.device_get(jax.jit(expand, static_argnums=1)(given, each))
    assert found is not None
    wide = jax.tree_util.tree_leaves_with_path(found)
    for (path, got), leaf in zip(wide, jax.tree.leaves(given), strict=True):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in ("prompt", "params", "lora")):
            np.testing.assert_array_equal(got, leaf, err_msg=name)
            continue
        axis = 1 if leaf.ndim == 5 else 0
        np.testing.assert_array_equal(got, np.repeat(leaf, each, axis=axis), err_msg=name)
    assert found.kv is not None and found.kv.layers == (1, 2)
    assert expand(given, 1) is given and expand(None, 3) is None
