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
from lw_jax.data.example import Group
from lw_jax.data.facts import FactsRows
from lw_jax.evaluate import mean_latent
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.predict import place
from lw_jax.text.collate import Collate, measure
from tests.tiny.evaluation import LAYOUT, RECEIVER, WIDTH, World, make_world

SIZE = 8


encode = jax.jit(EvalContext.encode)
deliver = jax.jit(EvalContext.deliver)


@pytest.fixture(scope="module")
def world() -> World:
    """Two tokens a slot, so that longer texts have more slots."""
    compressor = CompressorConfig(window=window.Config(size=2, width=16, heads=2, depth=1))
    return make_world(SIZE, level=4).with_parts(3, compressor=compressor)


@dataclasses.dataclass(frozen=True)
class Short:
    """Short texts, and how they are collated."""

    groups: list[Group]
    collate: Collate


@pytest.fixture(scope="module")
def short(world: World) -> Short:
    facts = FactsRows("train", 0, 1, 2 * SIZE)
    groups = [facts[i][:1] for i in range(2 * SIZE)]
    readers = {RECEIVER: world.tokenizer}
    lengths = measure(LAYOUT, world.sender, readers, groups)
    return Short(groups, Collate(LAYOUT, world.sender, readers, lengths))


def measured(world: World, short: Short, ways: int = 1) -> np.ndarray:
    """The mean as measured on short texts."""

    def put(batch: Any) -> Any:
        assert len(batch["valid"]) % ways == 0
        return jax.device_put(batch)

    return mean_latent.measure(world.ctx, short.groups, short.collate, put, SIZE, ways)


@pytest.fixture(scope="module")
def mean(world: World, short: Short) -> np.ndarray:
    return measured(world, short)


def test_mean_of_every_slot_and_of_all(world: World, short: Short, mean: np.ndarray) -> None:
    latent = encode(world.ctx, short.collate(short.groups))
    slots, mask = np.asarray(latent.slots), np.asarray(latent.mask)
    assert mean.shape == (slots.shape[1] + 1, WIDTH)
    assert not mask.all()  # texts of several lengths
    for at in range(slots.shape[1]):
        own = slots[:, at][mask[:, at]]
        expected = own.mean(axis=0) if len(own) else slots[mask].mean(axis=0)
        np.testing.assert_allclose(mean[at], expected, atol=1e-5)
    np.testing.assert_allclose(mean[-1], slots[mask].mean(axis=0), atol=1e-5)


def test_rows_that_fill_a_batch_up_do_not_count(
    world: World, short: Short, mean: np.ndarray
) -> None:
    assert SIZE % 7
    np.testing.assert_allclose(measured(world, short, 7), mean, atol=1e-6)


def test_longer_texts_get_the_mean_of_all_slots_beyond(world: World, mean: np.ndarray) -> None:
    batch = world.batch(0, SIZE)
    own = encode(world.ctx, batch)
    assert own.slots.shape[1] > len(mean) - 1  # the case
    mine = np.asarray(own.mask)
    places = np.minimum(np.arange(mine.shape[1]), len(mean) - 1)
    given = jnp.asarray(mean[places][None] * mine[..., None])
    ctx = world.ctx.replace(mean=jnp.asarray(mean))
    said, _ = place(method("mean").message, ctx, batch, own)
    expected = deliver(ctx, dataclasses.replace(own, slots=given))
    alike = jax.tree.map(np.allclose, said.delivery, expected)
    assert all(jax.tree.leaves(alike))
