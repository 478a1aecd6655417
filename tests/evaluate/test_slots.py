"""Slot statistics against numbers worked out by hand and by numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.evaluate import slots

SEEN, AGAINST = jax.jit(slots.statistics), jax.jit(slots.against_table)


def statistics(x: jax.Array, mask: jax.Array) -> dict[str, Any]:
    return slots.ranked(jax.device_get(SEEN(x, mask)))


def test_slots_that_are_alike_and_slots_at_right_angles() -> None:
    alike = np.broadcast_to(np.array([1.0, 2.0, 0.0, 0.0]), (4, 4)) * np.array([[1], [2], [3], [4]])
    apart = np.eye(4)
    found = statistics(jnp.asarray(np.stack([alike, apart])), jnp.ones((2, 4), bool))
    assert found["within_cosine"] == pytest.approx(0.5)
    assert found["count"] == 4
    one = statistics(jnp.asarray(apart)[None], jnp.ones((1, 4), bool))
    assert (one["within_cosine"], one["within_rank"]) == (0, pytest.approx(4))
    assert (one["between_cosine"], one["between_rank"]) == (0, pytest.approx(1))
    same = statistics(jnp.asarray(np.stack([apart] * 3)), jnp.ones((3, 4), bool))
    assert same["between_cosine"] == pytest.approx(1)
    assert same["between_rank"] == pytest.approx(1, abs=1e-2)


def test_masked_slots_count_for_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    mask = np.ones((3, 5), bool)
    mask[:, 3:] = False
    noisy = np.where(mask[..., None], x, 99.0)
    table = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
    for call in (statistics, lambda a, m: AGAINST(a, m, jnp.asarray(table), 0.5)):
        a = call(jnp.asarray(noisy), jnp.asarray(mask))
        b = call(jnp.asarray(x[:, :3]), jnp.ones((3, 3), bool))
        if slots.NEAREST in a:
            ids = np.asarray(a.pop(slots.NEAREST))
            np.testing.assert_array_equal(ids[:, :3], b.pop(slots.NEAREST))
            assert (ids[:, 3:] == -1).all()
        for key, value in b.items():
            assert a[key] == pytest.approx(float(value), abs=1e-4), key


def test_the_variance_is_over_the_texts_that_have_a_slot() -> None:
    x = np.random.default_rng(3).normal(size=(4, 3, 6)).astype(np.float32)
    mask = np.ones((4, 3), bool)
    mask[1:, 2] = mask[0, 1] = False
    found = statistics(jnp.asarray(x), jnp.asarray(mask))
    each = [x[mask[:, m], m].var(axis=0) for m in range(3)]
    assert found["variance"] == pytest.approx(np.mean(each), rel=1e-5)
    alike = np.broadcast_to(x[:1], x.shape)
    assert statistics(jnp.asarray(alike), jnp.ones((4, 3), bool))["variance"] < 1e-9


def test_against_the_table() -> None:
    table = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    table[3] = 0  # an embedding that was never trained
    x = np.random.default_rng(2).normal(size=(2, 3, 6)).astype(np.float32)
    x[0, 0] = 7 * table[11]
    found = AGAINST(jnp.asarray(x), jnp.ones((2, 3), bool), jnp.asarray(table), 0.25)
    rows = np.delete(table, 3, axis=0)
    flat = x.reshape(-1, 6)
    cosines = (flat / np.linalg.norm(flat, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(found["nearest_cosine"], cosines.max(axis=1).mean(), rtol=1e-5)
    rms = np.sqrt(np.mean(np.square(x)))
    np.testing.assert_allclose(found["rms"], rms, rtol=1e-5)
    np.testing.assert_allclose(found["rms_ratio"], rms / 0.25, rtol=1e-5)
    assert found[slots.NEAREST][0, 0] == 11
    exact, _ = slots.nearest(jnp.asarray(x[0, :1]), jnp.asarray(table))
    np.testing.assert_allclose(exact, 1.0, rtol=1e-5)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 5, 7)).astype(np.float32)
    x[1, 4] = 0

    def rank(vectors: np.ndarray) -> float:
        values = np.linalg.svd(vectors, compute_uv=False)
        shares = values[values > 1e-6] / values.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    found = statistics(jnp.asarray(x), jnp.ones((3, 5), bool))
    assert found["within_rank"] == pytest.approx(np.mean([rank(one) for one in x]), rel=1e-4)
    assert found["between_rank"] == pytest.approx(rank(x.reshape(3, -1)), rel=1e-4)
    nothing = statistics(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), bool))
    assert (nothing["within_rank"], nothing["between_rank"]) == (1, 1)


def test_on_many_devices_of_one_cpu_no_eigenvalues_are_asked_of_them() -> None:
    """Their kernels would wait for each other without end."""
    text = SEEN.lower(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), bool)).as_text()
    assert "lapack" not in text and "custom_call" not in text
