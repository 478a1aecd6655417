"""Heads of objectives, in numpy."""

from __future__ import annotations

import jax
import numpy as np

from lw_jax.objectives.common.heads import TokenHead, linear, pooled
from tests.tiny import by_hand


def test_queries_of_positions_read_the_real_slots() -> None:
    head = TokenHead(5, 8, 2, 3)
    rng = np.random.default_rng(0)
    slots = rng.normal(size=(2, 4, 6)).astype(np.float32)
    mask = np.asarray([[True, True, True, False], [True, False, False, False]])
    p = by_hand.drawn(head, slots, mask)
    assert set(p["enter"]) == {"kernel"}
    found = jax.jit(head.apply)({"params": p}, slots, mask)
    y = by_hand.rms_norm(p["slot_norm"], by_hand.dense(p["enter"], slots))
    z = np.broadcast_to(p["queries"] + by_hand.sinusoid(np.arange(5), 8), (2, 5, 8))
    z = z + by_hand.attention(p["cross"], by_hand.rms_norm(p["cross_norm"], z), y, mask)
    z = z + by_hand.mlp(p["mlp"], by_hand.rms_norm(p["mlp_norm"], z))
    wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z))
    np.testing.assert_allclose(found, wanted, atol=5e-4)


def test_a_head_maps_the_mean_of_the_real_slots() -> None:
    slots = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.asarray([[True, False, True], [False, True, False]])
    mean = np.stack([slots[0, [0, 2]].mean(0), slots[1, 1]])
    np.testing.assert_allclose(pooled(None, slots, mask), mean)
    params = {
        "kernel": np.arange(8, dtype=np.float32).reshape(4, 2),
        "bias": np.ones(2, np.float32),
    }
    wanted = mean @ params["kernel"] + 1
    np.testing.assert_allclose(pooled(params, slots, mask), wanted)
    np.testing.assert_allclose(linear(params, mean), wanted)
