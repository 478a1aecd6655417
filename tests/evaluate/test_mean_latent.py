"""The control `mean` where the evaluation's texts are longer than all that it was measured on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.config import CompressorConfig
from lw_jax.compressors import window
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate import mean_latent
from lw_jax.evaluate.methods import method
from lw_jax.text.collate import Collate, measure
from tests.tiny.evaluation import LAYOUT, RECEIVER, WIDTH, World, make_world

SIZE = 8


@pytest.fixture(scope="module")
def world() -> World:
    """Two tokens a slot, so that longer texts have more slots."""
    compressor = CompressorConfig(window=window.Config(size=2, width=16, heads=2, depth=1))
    return make_world(SIZE, level=4).with_parts(3, compressor=compressor)


def measured(world: World, ways: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean as measured on short texts, and the slots and masks of those texts."""
    facts = FactsRows("train", 0, 1, 2 * SIZE)
    groups = [facts[i][:1] for i in range(2 * SIZE)]
    readers = {RECEIVER: world.tokenizer}
    collate = Collate(LAYOUT, world.sender, readers, measure(LAYOUT, world.sender, readers, groups))

    def put(batch: Any) -> Any:
        assert len(batch["valid"]) % ways == 0
        return jax.device_put(batch)

    mean = mean_latent.measure(world.ctx, groups, collate, put, SIZE, ways)
    latent = world.ctx.encode(collate(groups))
    return mean, np.asarray(latent.slots), np.asarray(latent.mask)


def test_mean_of_every_slot_and_of_all(world: World) -> None:
    mean, slots, mask = measured(world)
    assert mean.shape == (slots.shape[1] + 1, WIDTH)
    assert not mask.all()  # texts of several lengths
    for place in range(slots.shape[1]):
        own = slots[:, place][mask[:, place]]
        expected = own.mean(axis=0) if len(own) else slots[mask].mean(axis=0)
        np.testing.assert_allclose(mean[place], expected, atol=1e-5)
    np.testing.assert_allclose(mean[-1], slots[mask].mean(axis=0), atol=1e-5)


def test_rows_that_fill_a_batch_up_do_not_count(world: World) -> None:
    assert SIZE % 7
    np.testing.assert_allclose(measured(world, 7)[0], measured(world)[0], atol=1e-6)


def test_longer_texts_get_the_mean_of_all_slots_beyond(world: World) -> None:
    mean, slots, _ = measured(world)
    batch = world.batch(0, SIZE)
    own = world.ctx.encode(batch)
    assert own.slots.shape[1] > slots.shape[1]  # the case
    mine = np.asarray(own.mask)
    places = np.minimum(np.arange(mine.shape[1]), len(mean) - 1)
    given = jnp.asarray(mean[places][None] * mine[..., None])
    ctx = world.ctx.replace(mean=jnp.asarray(mean))
    said = method("mean").message(ctx, batch, own)
    expected = ctx.deliver(dataclasses.replace(own, slots=given))
    alike = jax.tree.map(np.allclose, said.delivery, expected)
    assert all(jax.tree.leaves(alike))
