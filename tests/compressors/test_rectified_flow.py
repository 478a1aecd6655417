"""Rectified flow over velocities that are known, and over one learned for a toy mixture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.compressors import rectified_flow

MODES = np.array([[2.0, 0.0], [-1.0, 1.8], [-1.0, -1.8]], np.float32)
SHARES = np.array([0.5, 0.3, 0.2], np.float32)
SPREAD = 0.15


def test_the_loss_is_zero_at_the_true_velocity_alone() -> None:
    data, noise = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    t = np.array([0.0, 0.3, 0.9], np.float32)

    @jax.jit
    def found(data: Any, noise: Any, t: Any) -> Any:
        seen: list[Any] = []

        def true(x: Any, at: Any) -> Any:
            seen.append((x, at))
            return data - noise

        error = rectified_flow.squared_error(true, data, noise, t)
        return error, seen, rectified_flow.squared_error(lambda x, t: noise - data, data, noise, t)

    error, ((x, at),), backwards = found(data, noise, t)
    np.testing.assert_array_equal(error, np.zeros((3, 4)))
    np.testing.assert_array_equal(at, t)
    np.testing.assert_allclose(x[0], noise[0], rtol=1e-6)
    np.testing.assert_allclose(x[2], 0.9 * data[2] + 0.1 * noise[2], atol=1e-6)
    np.testing.assert_allclose(backwards, 4 * ((data - noise) ** 2).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_straight_path_is_walked_exactly_in_one_step(sampler: str) -> None:
    data, noise = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = jax.jit(
        lambda noise: rectified_flow.SAMPLERS[sampler](lambda x, t: data - noise, noise, 1)
    )(noise)
    np.testing.assert_allclose(found, data, atol=1e-6)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_a_sampler(sampler: str, order: int) -> None:
    """dx/dt = -2 t x + cos(3 t), against many steps, in float64."""
    with jax.enable_x64():
        start = np.array([[1.0], [-0.5]], np.float64)

        @partial(jax.jit, static_argnums=(0, 1))
        def end(name: str, steps: int) -> Any:
            return rectified_flow.SAMPLERS[name](
                lambda x, t: -2 * t[:, None] * x + jnp.cos(3 * t)[:, None], start, steps
            )

        exact = np.asarray(end("heun", 2048))
        coarse, fine = (np.abs(np.asarray(end(sampler, n)) - exact).max() for n in (64, 128))
    assert coarse / fine == pytest.approx(2**order, rel=0.05)


def test_times() -> None:
    uniform, normal = jax.device_get(
        jax.jit(
            lambda key: [
                rectified_flow.times(key, 20000, how) for how in ("uniform", "logit_normal")
            ]
        )(jax.random.key(0))
    )
    for t in (uniform, normal):
        assert t.shape == (20000,)
        assert 0 <= t.min() < t.max() <= 1
        assert t.mean() == pytest.approx(0.5, abs=0.01)
    middle = [((t > 0.25) & (t < 0.75)).mean() for t in (uniform, normal)]
    np.testing.assert_allclose(middle, [0.5, 0.728], atol=0.02)  # 2 Phi(ln 3) - 1


def mixture(rng: Any, rows: int) -> Any:
    pick, spread = jax.random.split(rng)
    modes = jnp.asarray(MODES)[jax.random.choice(pick, len(MODES), (rows,), p=jnp.asarray(SHARES))]
    return modes + SPREAD * jax.random.normal(spread, modes.shape)


def net(params: Any, x: Any, t: Any) -> Any:
    waves = [jnp.sin(2.0**k * t + phase)[:, None] for k in range(4) for phase in (0.0, 1.57)]
    h = jnp.concatenate([x, *waves], axis=-1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b[None])
    w, b = params[-1]
    return h @ w + b[None]


@pytest.fixture(scope="module")
def learned() -> Callable[[Any, Any], Any]:
    """The velocity of an MLP trained on the mixture."""
    sizes, draw = [10, 96, 96, 2], np.random.default_rng(0)
    params = [
        (
            draw.normal(0, (1.5 / a) ** 0.5, (a, b)).astype(np.float32),
            np.zeros(b, np.float32),
        )
        for a, b in pairwise(sizes)
    ]
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, 1500))

    def step(carry: Any, rng: Any) -> Any:
        params, state = carry
        of_data, of_noise, of_time = jax.random.split(rng, 3)
        data = mixture(of_data, 256)
        noise = jax.random.normal(of_noise, data.shape)
        t = rectified_flow.times(of_time, 256, "uniform")
        grads = jax.grad(
            lambda p: jnp.mean(rectified_flow.squared_error(partial(net, p), data, noise, t))
        )(params)
        updates, state = optimiser.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (trained, _), _ = jax.jit(
        lambda params: jax.lax.scan(
            step, (params, optimiser.init(params)), jax.random.split(jax.random.key(1), 1500)
        )
    )(params)
    return partial(net, trained)


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 40), ("heun", 20)])
def test_the_modes_of_a_mixture_are_recovered(
    learned: Callable[[Any, Any], Any], sampler: str, steps: int
) -> None:
    noise = np.random.default_rng(2).normal(size=(1000, 2)).astype(np.float32)
    points = np.asarray(
        jax.jit(lambda x: rectified_flow.SAMPLERS[sampler](learned, x, steps))(noise)
    )
    modes = MODES
    distance = np.linalg.norm(points[:, None] - modes[None], axis=-1)
    nearest, close = distance.argmin(axis=1), distance.min(axis=1) < 4 * SPREAD
    assert close.mean() > 0.93
    np.testing.assert_allclose(np.bincount(nearest) / len(points), SHARES, atol=0.06)
    for mode in range(len(modes)):
        own = points[(nearest == mode) & close]
        np.testing.assert_allclose(own.mean(axis=0), modes[mode], atol=0.1)
        np.testing.assert_allclose(own.std(axis=0), SPREAD, atol=0.08)
