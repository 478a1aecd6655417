"""Slots that see nothing."""

import chex
import jax
import numpy as np
import pytest

from lw_jax.compressors import constant
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Features

DIMS = BridgeDims(source_width=5, taps=1, latent_dim=6)


def features(seed: int) -> Features:
    x = np.random.default_rng(seed).normal(size=(3, 7, 5)).astype(np.float32)
    return Features(x, np.ones((3, 7), bool), np.zeros((3, 7), np.int32))  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [0, 4])
def test_every_text_has_the_same_slots(slots: int) -> None:
    module = constant.Config(slots).build(DIMS)
    params = jax.jit(module.init)(jax.random.key(0), {"source": features(1)})
    assert sum(x.size for x in jax.tree.leaves(params)) == slots * 6
    apply = jax.jit(module.apply)
    one, other = (jax.device_get(apply(params, {"source": features(seed)})) for seed in (1, 2))
    chex.assert_trees_all_equal(one, other)
    chex.assert_shape(one.slots, (3, slots, 6))
    chex.assert_trees_all_equal(one.slots[0], one.slots[2])
    assert one.span is None
    assert one.mask.all()


def test_a_negative_number_of_slots() -> None:
    with pytest.raises(UserError, match=r"^slots: expected at least 0"):
        constant.Config(-1)
