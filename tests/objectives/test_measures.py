"""How far vectors lie apart, against the same in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.objectives.base import Term, masked, mean
from lw_jax.objectives.common.measures import TINY, cosine, distance, masked_mean, unit

X = np.random.default_rng(0).normal(0, 1, (2, 3, 8)).astype(np.float32)
Y = np.random.default_rng(1).normal(0, 1, (2, 3, 8)).astype(np.float32)


def wide(x: np.ndarray) -> np.ndarray:
    """What a bfloat16 copy holds, in float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64)


def test_narrow_numbers_are_compared_in_float32() -> None:
    """As if they were wide: nothing is rounded on the way."""
    x, y = jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16)
    a, b = wide(X), wide(Y)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    square = np.mean((a - b) ** 2, axis=-1)
    wanted = {
        "cosine": 1 - np.sum(a * b, axis=-1) / lengths,
        "mse": square,
        "relative_mse": square / np.mean(b**2, axis=-1),
    }

    @jax.jit
    def measured(x: Any, y: Any) -> Any:
        return {kind: distance(kind, x, y) for kind in wanted}, cosine(x, y), unit(x)  # type: ignore[arg-type]

    found, alike, one = measured(x, y)
    for kind, value in wanted.items():
        assert found[kind].dtype == jnp.float32
        np.testing.assert_allclose(found[kind], value, rtol=1e-5, err_msg=kind)
    np.testing.assert_allclose(alike, np.sum(a * b, axis=-1) / lengths, atol=1e-6)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1.0, atol=1e-6)


def test_a_mean_over_what_is_real() -> None:
    mask = jnp.asarray([[True, False, True], [False, False, False]])
    found = jax.jit(masked_mean)(jnp.asarray(X, jnp.bfloat16), mask)
    assert found.dtype == jnp.float32
    found = np.asarray(found)
    np.testing.assert_allclose(found[0], wide(X)[0, [0, 2]].mean(axis=0), rtol=1e-5)
    assert not found[1].any()


@jax.jit
def of_a_vector(x: Any) -> Any:
    """At length 1, the slope of that, and how far it lies from twice itself."""
    return unit(x), jax.grad(lambda x: jnp.sum(unit(x)))(x), distance("relative_mse", 2 * x, x)


@pytest.mark.parametrize("size", [1e-3, 2e-6])
def test_a_quiet_vector_has_a_length_and_none_at_all_has_no_gradient(size: float) -> None:
    """Squared lengths of 4e-12 lie above `TINY`, which is added to them."""
    x = np.zeros(4, np.float32)
    x[1] = size
    one, slope, quiet = (np.asarray(found) for found in of_a_vector(x))
    np.testing.assert_allclose(one[1], size / np.sqrt(size**2 + TINY), rtol=1e-5)
    assert np.isfinite(slope).all() and slope.any()
    # mean squares: size**2 / 4 of both
    np.testing.assert_allclose(quiet, size**2 / 4 / (size**2 / 4 + TINY), rtol=1e-5)
    one, slope, _ = (np.asarray(found) for found in of_a_vector(x / np.float32(4e3)))
    assert not one.any() and not slope.any()
    assert TINY == 1e-12


def test_a_mean_of_nothing_is_nothing() -> None:
    """And of less than one it is taken as it is: weights may be small."""
    for total, count, wanted in ((0.0, 0.0, 0.0), (6.0, 3.0, 2.0), (0.3, 0.5, 0.3)):
        assert float(jax.jit(mean)(Term(total, count))) == pytest.approx(wanted)  # type: ignore[arg-type]
    values, mask = np.asarray([[1.0, 2.0], [4.0, 8.0]]), np.asarray([[True, False], [True, True]])
    term = jax.jit(masked)(values, mask)
    assert (float(term.total), float(term.count)) == (13.0, 3.0)
