"""Rectified flow: a straight path from noise to data, learned as a velocity.

See docs/design.md section 4.

Liu et al. 2022 (arXiv:2209.03003); Lipman et al. 2022 (arXiv:2210.02747). Pure functions over a
velocity `(x [B, ...], t [B]) -> [B, ...]`; t is 0 at the noise and 1 at the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from lw_jax.types import Array

Velocity = Callable[[Array, Array], Array]
Sampler = Callable[[Velocity, Array, int], Array]
Time = Literal["uniform", "logit_normal"]


def times(rng: Array, rows: int, how: Time) -> Array:
    """[rows] float32 in (0, 1); `logit_normal` prefers the middle (Esser et al. 2024)."""
    if how == "uniform":
        return jax.random.uniform(rng, (rows,))
    return jax.nn.sigmoid(jax.random.normal(rng, (rows,)))


def squared_error(velocity: Velocity, data: Array, noise: Array, t: Array) -> Array:
    """Squared error of the velocity on the way from noise to data, mean over the last axis.

    The point is x_t = t * data + (1 - t) * noise, the target data - noise.

    Args:
        velocity: the velocity.
        data: [B, ..., D].
        noise: [B, ..., D].
        t: [B], 0 at the noise and 1 at the data.

    Returns:
        [B, ...] float32.
    """
    at = jnp.expand_dims(t, tuple(range(1, data.ndim)))
    x = at * data + (1.0 - at) * noise
    return jnp.mean(jnp.square(velocity(x, t) - (data - noise)), axis=-1)


def euler(velocity: Velocity, noise: Array, steps: int) -> Array:
    """Data from noise [B, ...] by `steps` Euler steps: one velocity each, error O(1 / steps)."""
    size = 1.0 / steps

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x + size * velocity(x, _everywhere(x, t)), None

    return jax.lax.scan(step, noise, _starts(steps))[0]


def heun(velocity: Velocity, noise: Array, steps: int) -> Array:
    """Data from noise [B, ...] by `steps` Heun steps: two velocities each, error O(1 / steps^2)."""
    size = 1.0 / steps

    def step(x: Array, t: Array) -> tuple[Array, None]:
        first = velocity(x, _everywhere(x, t))
        second = velocity(x + size * first, _everywhere(x, t + size))
        return x + 0.5 * size * (first + second), None

    return jax.lax.scan(step, noise, _starts(steps))[0]


SAMPLERS: Mapping[str, Sampler] = {"euler": euler, "heun": heun}


def _starts(steps: int) -> Array:
    return jnp.arange(steps, dtype=jnp.float32) / steps


def _everywhere(x: Array, t: Array) -> Array:
    return jnp.full((x.shape[0],), t)
