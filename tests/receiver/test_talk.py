"""What is read in steps, or in parts, is what is read at once."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.cache import Cache
from lw_jax.models.decoder import LayerInputs
from lw_jax.models.generate import DecodeOptions
from lw_jax.receiver import talk
from lw_jax.receiver.answer import Message, alone, write
from lw_jax.receiver.join import joined
from lw_jax.receiver.pack import Segment
from lw_jax.types import KV, Blocks, Delivery, Edits, Lora
from tests.tiny.receiver import model, prompt

PARTS, SLOTS, COLUMNS, WIDTH = 3, 4, 2, 24
OPTIONS = DecodeOptions(max_new=4)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
"""Soft tokens of the parts of a message: all, half, and a part that fills it up."""


def numbers(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 0.3).astype(np.float32)


def delivery(everywhere: bool = True) -> Delivery:
    """Of three parts of one message, with all that a reader can deliver.

    Args:
        everywhere: with prefix columns and blocks, which earlier tokens of the message see as well.
    """
    arch = model().arch
    heads = (arch.kv_heads, arch.head_dim)
    kv = KV(
        numbers(1, arch.layers, PARTS, COLUMNS, *heads),
        numbers(2, arch.layers, PARTS, COLUMNS, *heads),
        np.ones((PARTS, COLUMNS), bool),
        np.broadcast_to(np.arange(COLUMNS, dtype=np.float32), (PARTS, COLUMNS)),
    )
    given = {"x": numbers(3, PARTS, SLOTS, WIDTH), "mask": MASK}
    own = Blocks({"w": np.ones((1,), np.float32)}, _add, (0,), given) if everywhere else None
    deltas = (numbers(seed, arch.layers, PARTS, SLOTS, *heads) for seed in (4, 5))
    keep = MASK[None, :, :, None, None]
    edits = Edits(None, own, *(x * keep for x in deltas))
    spread = np.broadcast_to(np.arange(SLOTS, dtype=np.float32) * 2.5, (PARTS, SLOTS))
    advance = np.float32([10.0, 7.0, 0.0])
    return Delivery(
        numbers(6, PARTS, SLOTS, WIDTH),
        MASK,
        spread,
        kv if everywhere else None,
        advance,
        edits,
    )


def _add(params: object, h: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
    """A block that adds the sum of all real slots."""
    return h + jnp.einsum("bmd,bm->bd", given["x"], given["mask"])[:, None]


def part(whole: Delivery, *rows: int) -> Message:
    """Some of the parts, as one message."""
    at = np.array(rows)
    kv, edits = whole.kv, whole.edits
    assert edits is not None
    assert edits.k_delta is not None and edits.v_delta is not None
    assert whole.embeds is not None and whole.advance is not None
    blocks = edits.blocks
    if blocks is not None:
        blocks = blocks.replace(given=jax.tree.map(lambda x: x[at], blocks.given))  # type: ignore[attr-defined]
    own = Delivery(
        whole.embeds[at],
        None if whole.mask is None else whole.mask[at],
        None if whole.positions is None else whole.positions[at],
        None if kv is None else KV(kv.k[:, at], kv.v[:, at], kv.mask[at], kv.positions[at]),
        whole.advance[at],
        Edits(None, blocks, edits.k_delta[:, at], edits.v_delta[:, at]),
    )
    m, real = model(), MASK[at].any(axis=1)
    made: Message = jax.jit(lambda own: alone(m, joined(own, len(rows), real), 1))(own)
    return made


def question(seed: int, size: int = 5) -> Segment:
    return segment(np.random.default_rng(seed).integers(3, 300, (1, size)))


def at_once(message: Message, asked: Segment) -> tuple[np.ndarray, np.ndarray]:
    out = write(model(), prompt(), message, asked, jax.random.key(0), OPTIONS)
    return np.asarray(out.ids), np.asarray(out.logprobs)


def in_steps(heard: talk.Heard, asked: Segment) -> tuple[talk.Answering, np.ndarray, np.ndarray]:
    assert asked.ids is not None
    m = model()
    said = talk.ask(m, heard, asked.ids, asked.lengths, OPTIONS, jax.random.key(0))
    for step in range(2, OPTIONS.max_new + 1):  # a token at a time
        said = talk.write(m, heard, said, OPTIONS, np.asarray(step))
    out = said.writing.out
    return said, np.asarray(out.ids), np.asarray(out.logprobs)


@pytest.mark.slow
def test_a_part_that_fills_a_message_up_changes_nothing() -> None:
    whole = delivery()
    (ids, scores), (again, same) = (
        at_once(part(whole, *rows), question(9)) for rows in ((0, 1), (0, 1, 2))
    )
    assert ids.tolist() == again.tolist()
    chex.assert_trees_all_close(scores, same, atol=1e-5)
    _, turned = at_once(part(whole, 1, 0), question(9))
    assert not np.allclose(scores, turned, atol=1e-3)


def test_a_message_alone_is_left_as_it_is() -> None:
    whole = delivery()
    assert joined(whole, 1, np.ones(PARTS, bool)) is whole


@pytest.mark.slow  # the API's own test has the bridge that ships
def test_questions_in_steps_are_questions_at_once() -> None:
    whole = delivery()
    message = part(whole, 0)
    heard = talk.begin(model(), prompt(), message, 40)
    for seed in (7, 8):
        _, ids, scores = in_steps(heard, question(seed))
        expected, known = at_once(message, question(seed))
        assert ids.tolist() == expected.tolist()
        chex.assert_trees_all_close(scores, known, atol=1e-5)


def test_a_second_message_is_read_after_the_first() -> None:
    """Where its tokens see only what came before them, as if both had come at once."""
    whole = delivery(everywhere=False)
    first = talk.begin(model(), prompt(), part(whole, 0), 16)
    heard = talk.hear(model(), talk.roomier(first, 40), part(whole, 1))
    _, ids, scores = in_steps(heard, question(7))
    expected, known = at_once(part(whole, 0, 1), question(7))
    assert ids.tolist() == expected.tolist()
    chex.assert_trees_all_close(scores, known, atol=1e-5)


@pytest.mark.slow  # likewise
def test_a_turn_that_is_remembered_is_part_of_the_sequence() -> None:
    message = part(delivery(), 0)
    heard = talk.begin(model(), prompt(), message, 40)
    said, ids, _ = in_steps(heard, question(7))
    after = talk.remembered(heard, said)
    second = question(8)
    assert second.ids is not None
    pending = np.concatenate([ids[:, -1:], second.ids], axis=1)  # the last token is not read yet
    _, found, scores = in_steps(after, segment(pending))
    first = question(7)
    assert first.ids is not None
    both = np.concatenate([first.ids, ids, second.ids], axis=1)
    expected, known = at_once(message, segment(both))
    assert found.tolist() == expected.tolist()
    chex.assert_trees_all_close(scores, known, atol=1e-5)


def segment(ids: np.ndarray) -> Segment:
    return Segment(ids, None, np.asarray([ids.shape[1]]), "ask")


def test_prefixes_of_two_messages_stand_one_behind_the_other() -> None:
    """Keys, values, which are real, and where they stand; of one alone it is that one."""
    shape = (2, 3, COLUMNS, 1, 4)

    def prefix(seed: int, real: bool) -> KV:
        at = numbers(seed + 2, 3, COLUMNS)
        return KV(numbers(seed, *shape), numbers(seed + 1, *shape), np.full(at.shape, real), at)

    first, second = prefix(1, True), prefix(5, False)
    both = jax.device_get(jax.jit(talk._both)(first, second))
    assert both is not None
    assert both.mask.tolist() == [[True] * COLUMNS + [False] * COLUMNS] * 3
    for name, axis in (("k", 2), ("v", 2), ("positions", 1)):
        parts = np.split(getattr(both, name), 2, axis=axis)
        chex.assert_trees_all_equal(parts, [getattr(first, name), getattr(second, name)])
    assert talk._both(first, None) is first and talk._both(None, second) is second


def test_a_prefix_that_is_heard_later_stands_behind_what_was_read() -> None:
    first = talk.begin(model(), prompt(), part(delivery(everywhere=False), 0), 16)
    heard = talk.hear(model(), talk.roomier(first, 40), part(delivery(), 1))
    read = len(prompt().head) + 10  # what stands before the message, and how far the first went
    assert heard.inputs.kv is not None
    np.testing.assert_allclose(heard.inputs.kv.positions, [[read, read + 1]])
    assert heard.position.tolist() == [read + 7]


@pytest.mark.parametrize("stacked", [True, False])
def test_a_roomier_cache_has_what_it_had(stacked: bool) -> None:
    """Of a stack of layers, or layer by layer; one that has the room stays."""

    def made(*shape: int) -> Any:
        return numbers(1, *shape) if stacked else [numbers(1, *shape[1:])] * shape[0]

    shape, grown = (2, 3, 4, 1, 6), (2, 3, 7, 1, 6)
    cache = Cache(made(*shape), made(*shape), numbers(2, 3, 4), np.asarray([1, 2, 3]))
    heard = talk.Heard(cache, np.ones(3), LayerInputs())
    assert talk.roomier(heard, 4) is heard and talk.roomier(heard, 3) is heard
    assert talk.roomier(heard, 5).cache.positions.shape == (3, 5)
    more = talk.roomier(heard, 7).cache
    assert more.lengths is cache.lengths
    more = jax.device_get(more)
    assert more.positions.shape == (3, 7)
    np.testing.assert_array_equal(more.positions[:, :4], cache.positions)
    for name in ("k", "v"):
        got, had = np.asarray(getattr(more, name)), np.asarray(getattr(cache, name))
        assert got.shape == grown
        np.testing.assert_array_equal(got[:, :, :4], had)
        assert not got[:, :, 4:].any()


def test_edits_of_two_messages_stand_beside_each_other() -> None:
    """Blocks read the slots of both; deltas are the second one's, and no later token has any."""
    first, second = (
        Edits(
            Lora({}, {}, float(seed)),
            Blocks({}, _add, (0,), {"x": numbers(seed, 3, 2, 5)}),
            numbers(seed + 2, 1, 3, 2, 1, 1),
            numbers(seed + 4, 1, 3, 2, 1, 1),
        )
        for seed in (1, 2)
    )
    both = talk._edits(first, second)
    assert both.blocks is not None and first.blocks is not None and second.blocks is not None
    halves = np.split(np.asarray(both.blocks.given["x"]), 2, axis=1)
    chex.assert_trees_all_equal(halves, [first.blocks.given["x"], second.blocks.given["x"]])
    assert both.lora is second.lora
    assert both.k_delta is second.k_delta and both.v_delta is second.v_delta
    alone_ = talk._edits(Edits(), second)
    assert alone_.blocks is second.blocks
    assert talk._edits(first, Edits()).blocks is None
    inputs = LayerInputs(None, np.ones(3), both, np.ones((3, 2)), allowed=None)
    later = talk._kept(inputs)
    assert later.edits.blocks is both.blocks and later.edits.lora is both.lora
    assert later.edits.k_delta is None and later.slot_index is None
    assert later.message_start is inputs.message_start
