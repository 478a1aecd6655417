"""Latent adapters: the clean receiver at the start, then whatever is read from the latent."""

import dataclasses
from functools import cache, partial
from typing import Any

import chex
import jax
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.readers import latent_adapters
from lw_jax.receiver.answer import Message, adapter_keys
from lw_jax.receiver.pack import Segment
from lw_jax.receiver.read import expand
from lw_jax.types import Blocks, Delivery, Edits, Latent

DIMS = ModelDims(width=12, layers=3, kv_heads=2, head_dim=4)
CONFIG = latent_adapters.Config(layers=(1, 3), heads=2, head_dim=4, mlp_ratio=2)


def latent() -> Latent:
    mask = np.asarray([[True, True, True], [True, True, False]])
    return Latent(normal(0, 2, 3, 5), mask)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@cache
def fresh() -> Any:
    init = jax.jit(CONFIG.build(DIMS).init)
    return jax.device_get(init(jax.random.key(1), latent()))


def blocks_of(given: Latent, *, trained: bool) -> Blocks:
    module = CONFIG.build(DIMS)
    params = fresh()
    if trained:  # what a block adds starts at zero
        params = jax.tree.map(
            lambda x: x + np.float32(0.2 * np.cos(np.arange(x.size)).reshape(x.shape)), params
        )
    delivery = module.apply(params, given)
    assert isinstance(delivery, Delivery)
    assert delivery.columns() == 0
    assert delivery.edits is not None
    assert delivery.edits.blocks is not None
    return delivery.edits.blocks


def test_the_keys_that_blocks_read_are_counted() -> None:
    given = latent()
    blocks = blocks_of(given, trained=False)
    real = given.mask.sum(axis=1)
    delivery = expand(Delivery(edits=Edits(blocks=blocks)), 3)
    segment = Segment(None, np.zeros((6, 0, 12)), np.zeros((6,), np.int32), "message")
    keys, layers, entries = adapter_keys(Message(segment, delivery))
    np.testing.assert_array_equal(keys, np.repeat(real, 3))
    assert int(layers) == len(blocks.layers) == 2
    np.testing.assert_array_equal(entries, keys * 2 * blocks.heads)
    for none in (None, Delivery(), Delivery(edits=Edits())):
        keys, layers, entries = adapter_keys(Message(segment, none))
        assert (keys.tolist(), int(layers), entries.tolist()) == ([0] * 6, 0, [0] * 6)


def through(blocks: Blocks, layer: int = 0) -> np.ndarray:
    return np.asarray(_through(blocks, layer))


@partial(jax.jit, static_argnums=1)
def _through(blocks: Blocks, layer: int) -> jax.Array:
    h = 3.0 * normal(2, 2, 4, 12)
    own = jax.tree.map(lambda x: x[layer], blocks.params)
    return blocks.apply(own, h, blocks.given) - h


def test_a_stream_of_zeros_stays_finite() -> None:
    """Where there is nothing to norm, as in columns that are padding."""
    x, rms = jax.jit(latent_adapters._normed)(np.float32([[0.0, 0.0], [3.0, -3.0]]))
    np.testing.assert_allclose(x, [[0.0, 0.0], [1.0, -1.0]], rtol=1e-5)
    np.testing.assert_allclose(rms, [[0.001], [3.0]], rtol=1e-5)


def test_starts_as_the_clean_receiver() -> None:
    blocks = blocks_of(latent(), trained=False)
    assert blocks.layers == (0, 2)
    chex.assert_trees_all_equal(through(blocks), np.zeros((2, 4, 12), np.float32))


def test_what_is_added_grows_with_the_stream_and_no_gradient_says_so() -> None:
    """A stream twice as loud is given twice as much; its loudness is taken as a number."""
    blocks = blocks_of(latent(), trained=True)
    h = normal(2, 2, 4, 12)
    own = jax.tree.map(lambda x: x[0], blocks.params)

    def added(loud: jax.Array) -> jax.Array:
        return blocks.apply(own, loud * h, blocks.given) - loud * h

    both = jax.jit(lambda loud: jax.jvp(added, (loud,), (1.0,)))
    (once, slope), (twice, _) = jax.device_get((both(3.0), both(6.0)))
    chex.assert_trees_all_close(twice, 2.0 * once, rtol=1e-3, atol=1e-4)
    assert np.abs(once).max() > 0.1 > 1e3 * np.abs(slope).max()


def test_reads_the_slots_that_are_real() -> None:
    before = through(blocks_of(latent(), trained=True))
    hidden = np.array(latent().slots)
    hidden[1, 2] = 9.0
    same = through(blocks_of(dataclasses.replace(latent(), slots=hidden), trained=True))
    chex.assert_trees_all_close(before, same, atol=1e-6)
    seen = np.array(latent().slots)
    seen[1, 1] = 9.0
    other = through(blocks_of(dataclasses.replace(latent(), slots=seen), trained=True))
    chex.assert_trees_all_close(before[0], other[0], atol=1e-6)
    assert np.abs(before[1] - other[1]).max() > 1e-2


def test_every_question_reads_its_own_context() -> None:
    module = CONFIG.build(DIMS)
    delivery = module.apply(fresh(), latent())
    more = jax.device_get(jax.jit(expand, static_argnums=1)(delivery, 3))
    assert more is not None
    assert more.edits is not None
    assert more.edits.blocks is not None
    slots = more.edits.blocks.given["slots"]
    np.testing.assert_array_equal(slots[3:], np.repeat(slots[3:4], 3, axis=0))
    np.testing.assert_array_equal(slots[:3], np.repeat(slots[:1], 3, axis=0))


def test_a_layer_beyond_the_receivers() -> None:
    wrong = dataclasses.replace(CONFIG, layers=(4,)).build(DIMS)
    with pytest.raises(UserError, match=r"layers: \[4\] are not all among .* 1 to 3"):
        wrong.init(jax.random.key(0), latent())
