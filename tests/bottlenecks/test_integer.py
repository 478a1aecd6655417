"""Integers on the wire's own grid; every bottleneck of slots crosses its codec unchanged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bottlenecks import integer, rounded
from lw_jax.wire.codecs import CODECS
from lw_jax.wire.rounding import as_sent
from tests.tiny.bottlenecks import Part, draw, latent


def hard_slots() -> np.ndarray:
    """Slots of many scales, one of zeros, one of a single number, one that ends at its largest."""
    x = draw(1, 24, 9) * np.exp(draw(1, 24, 1, seed=1, std=8.0))
    x[0, 3], x[0, 4, 1:], x[0, 5] = 0.0, 0.0, np.linspace(-1, 1, 9)
    return x.astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
def test_inside_a_trace_slots_are_what_the_codec_decodes(name: str) -> None:
    x = hard_slots() if name.startswith("int") else draw(1, 8, 9)
    sent = CODECS[name].unpack(CODECS[name].pack(x[0]), *x.shape[1:])
    np.testing.assert_array_equal(jax.jit(as_sent, static_argnums=1)(x, name)[0], sent)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_16_bits_cannot_hold_becomes_their_largest_number(name: str) -> None:
    most = float(jnp.finfo(name).max)
    x = np.array([[3.0e38 if name == "float16" else 3.4e38, -3.4e38, 1.5]], np.float32)
    np.testing.assert_array_equal(
        jax.jit(as_sent, static_argnums=1)(x, name), np.array([[most, -most, 1.5]], np.float32)
    )


@pytest.mark.parametrize(
    "config",
    [integer.Config(bits) for bits in (4, 6, 8)]
    + [rounded.Config(dtype) for dtype in ("float16", "bfloat16")],
)
def test_what_leaves_the_bottleneck_crosses_the_wire_unchanged(config: Any) -> None:
    codec = CODECS[config.codec]
    out = np.asarray(Part(config, 9)(latent(hard_slots().clip(-6e4, 6e4)))[0].slots)
    np.testing.assert_array_equal(codec.unpack(codec.pack(out[0]), *out.shape[1:]), out[0])
    if isinstance(config, integer.Config):
        steps = out[0] / np.abs(out[0]).max(1, keepdims=True, initial=1e-30)
        limit = 2 ** (config.bits - 1) - 1
        np.testing.assert_allclose(steps * limit, np.round(steps * limit), atol=1e-4)
        assert len(np.unique(np.round(steps * limit))) > limit


@pytest.mark.parametrize("config", [integer.Config(4), integer.Config(8)])
def test_the_gradient_passes_straight_through(config: integer.Config) -> None:
    part = Part(config, 9)
    weights = draw(1, 24, 9, seed=2)
    of = jax.grad(lambda x: jnp.sum(weights * part(latent(x))[0].slots))
    grad = jax.jit(of)(draw(1, 24, 9))
    np.testing.assert_array_equal(grad, weights)


@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
def test_halves_are_rounded_alike_on_the_host_and_in_a_trace(name: str) -> None:
    """Of slots that were rounded to 16 bits before, many lie halfway between two codes."""
    x = np.random.default_rng(2).normal(size=(500, 256)).astype(np.float16).astype(np.float32)
    sent = CODECS[name].unpack(CODECS[name].pack(x), *x.shape)
    np.testing.assert_array_equal(jax.jit(as_sent, static_argnums=1)(x, name), sent)
