"""Parts of a message as one delivery, by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lw_jax.receiver import join
from lw_jax.receiver.join import advance_of
from lw_jax.types import KV, Blocks, Delivery, Edits, Lora

EMBEDS = np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2, 1)
"""Two parts of two messages, of two soft tokens each."""
BOTH = np.ones(4, bool)
FILLED = np.asarray([True, True, True, False])
joined = jax.jit(join.joined, static_argnums=1)


def test_soft_tokens_of_a_part_come_after_those_of_the_part_before() -> None:
    found = jax.device_get(joined(Delivery(EMBEDS), 2, BOTH))
    assert found.embeds is not None and found.mask is not None and found.positions is not None
    assert found.embeds[..., 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.mask.all()
    assert found.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert found.advance is not None and found.advance.tolist() == [4, 4]


@pytest.mark.parametrize("real", [True, False])
def test_what_is_no_token_comes_last_and_takes_no_place(real: bool) -> None:
    """Of the first part one token; the last part may only fill its message up."""
    mask = np.ones((4, 2), bool)
    mask[0, 1] = False
    found = jax.device_get(joined(Delivery(EMBEDS, mask), 2, BOTH if real else FILLED))
    assert found.embeds is not None and found.mask is not None and found.positions is not None
    assert found.embeds[0, :, 0].tolist() == [1, 3, 4, 2]
    assert found.mask.tolist() == [[True, True, True, False], [True, True, real, real]]
    assert found.positions[0, :3].tolist() == [0, 1, 2]
    assert found.advance is not None and found.advance.tolist() == [3, 4 if real else 2]


def test_columns_in_every_layer_go_on_from_the_end_of_the_part_before() -> None:
    """Three columns and two soft tokens: a part takes three positions."""
    values = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3, 1, 1)
    at = np.tile(np.arange(3.0, dtype=np.float32)[None], (4, 1))
    kv = KV(values, -values, np.ones((4, 3), bool), at)
    found = jax.device_get(joined(Delivery(EMBEDS, kv=kv), 2, BOTH))
    assert found.kv is not None and found.positions is not None
    np.testing.assert_array_equal(found.kv.k.reshape(2, 2, 6), values.reshape(2, 2, 6))
    np.testing.assert_array_equal(found.kv.v, -found.kv.k)
    assert found.kv.mask.shape == (2, 6) and found.kv.mask.all()
    assert found.kv.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert found.positions.tolist() == [[0, 1, 3, 4]] * 2
    assert found.advance is not None and found.advance.tolist() == [6, 6]


def test_edits_of_parts_lie_side_by_side_as_their_soft_tokens_do() -> None:
    """Deltas follow the soft tokens that they belong to; blocks read the slots of all parts, and
    count the keys of those that are real. LoRA and prompt stay."""
    mask = np.asarray([[True, False], [True, True], [True, True], [True, True]])
    deltas = np.arange(2 * 4 * 2.0, dtype=np.float32).reshape(2, 4, 2, 1, 1)
    given = {"slots": np.arange(12.0, dtype=np.float32).reshape(4, 3)}
    blocks = Blocks({}, max, (1,), given, np.asarray([2, 3, 4, 5]), 2)
    lora = Lora({}, {}, 2.0)
    edits = Edits(lora, blocks, deltas, -deltas)
    prompt = np.ones((1, 1), np.float32)
    given = Delivery(EMBEDS, mask, edits=edits, prompt=prompt)
    kept: list[bool] = []

    @jax.jit
    def side_by_side(given: Delivery) -> Delivery:
        made = join.joined(given, 2, FILLED)
        assert given.edits is not None and made.edits is not None
        kept.append(made.edits.lora is given.edits.lora and made.prompt is given.prompt)
        return made

    found = jax.device_get(side_by_side(given))
    assert found.edits is not None and found.edits.blocks is not None
    assert kept == [True]
    assert found.edits.k_delta is not None and found.edits.v_delta is not None
    order = np.asarray([[0, 2, 3, 1], [0, 1, 2, 3]])
    beside = deltas.reshape(2, 2, 4)
    wanted = np.take_along_axis(beside, order[None], axis=2)
    np.testing.assert_array_equal(found.edits.k_delta[..., 0, 0], wanted)
    np.testing.assert_array_equal(found.edits.v_delta[..., 0, 0], -wanted)
    assert found.edits.blocks.keys is not None
    assert found.edits.blocks.keys.tolist() == [5, 4]
    assert found.edits.blocks.given["slots"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert (found.edits.blocks.layers, found.edits.blocks.heads) == ((1,), 2)
    bare = joined(Delivery(EMBEDS, edits=Edits(lora)), 2, BOTH).edits
    assert bare is not None and bare.blocks is None and bare.k_delta is None


def test_a_part_that_only_fills_up_has_no_columns() -> None:
    """Positions of its own, and how far a message goes, where readers say them."""
    values = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3, 1, 1)
    keep = np.ones((4, 3), bool)
    keep[0, 2] = False
    kv = KV(values, -values, keep, np.tile(np.float32([[0, 2, 4]]), (4, 1)), (1,))
    found = joined(Delivery(kv=kv), 2, FILLED)
    assert found.embeds is None and found.mask is None and found.positions is None
    assert found.kv is not None and found.kv.layers == (1,)
    assert found.kv.mask.tolist() == [
        [True, True, False, True, True, True],
        [True] * 3 + [False] * 3,
    ]
    assert found.kv.positions.tolist() == [[0, 2, 4, 2, 4, 6], [0, 2, 4, 3, 5, 7]]
    assert found.advance is not None and found.advance.tolist() == [5, 3]
    advance, at = np.float32([5.0, 6.0, 7.0, 8.0]), np.float32([[0.5, 1.5]] * 4)
    own = joined(Delivery(EMBEDS, positions=at, advance=advance), 2, FILLED)
    assert own.positions is not None and own.advance is not None
    assert own.positions.tolist() == [[0.5, 1.5, 5.5, 6.5], [0.5, 1.5, 7.5, 8.5]]
    assert own.advance.tolist() == [11, 7]


def test_how_far_a_message_goes() -> None:
    soft, values = np.asarray([2, 2, 2, 2]), np.zeros((1, 4, 3, 1, 1))
    keep = np.asarray([[True] * 3, [True, False, False], [False] * 3, [True, True, False]])
    kv = KV(values, values, keep, np.zeros((4, 3)))
    assert advance_of(Delivery(EMBEDS, kv=kv), soft).tolist() == [3, 2, 2, 2]
    assert advance_of(Delivery(EMBEDS), soft) is soft
    assert advance_of(Delivery(EMBEDS, kv=kv, advance=soft + 5), soft).tolist() == [7] * 4


def test_many_soft_tokens_keep_their_order() -> None:
    counts = np.asarray([7, 30, 1, 25])
    mask = np.arange(30)[None] < counts[:, None]
    x = np.arange(120.0, dtype=np.float32).reshape(4, 30, 1)
    found = jax.device_get(joined(Delivery(x, mask), 2, BOTH))
    assert found.embeds is not None and found.mask is not None
    for row in range(2):
        wanted = [*x[2 * row][mask[2 * row], 0], *x[2 * row + 1][mask[2 * row + 1], 0]]
        assert found.embeds[row, : len(wanted), 0].tolist() == wanted
        assert int(found.mask[row].sum()) == len(wanted)
