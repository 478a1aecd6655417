"""Rotary attention of the bridges: scores know distances, not places."""

from __future__ import annotations

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import perceiver, window
from lw_jax.errors import UserError
from lw_jax.layers import transformer
from lw_jax.layers.transformer import Attention, Stack
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Array, Features
from tests.tiny.evaluation import draw

WIDTH, TOKENS = 16, 12
DIMS = BridgeDims(source_width=WIDTH, taps=1, latent_dim=6)
ROWS = np.random.default_rng(1).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)


def attended(x: Array, shift: float, spread: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """x over itself, at positions `spread` apart from `shift` on; keys `offset` further on."""
    return np.asarray(_attended(x, shift, spread, offset))


@jax.jit
def _attended(x: Array, shift: Array, spread: Array, offset: Array) -> Array:
    at = jnp.broadcast_to(shift + spread * jnp.arange(TOKENS), x.shape[:2])
    module = Attention(heads=2)
    mask = jnp.ones(x.shape[:2], bool)
    params = module.init(jax.random.key(0), x, x, mask)
    found: Array = module.apply(params, x, x, mask, at=(at, at + offset))  # type: ignore[assignment]
    return found


def test_a_shift_of_everything_changes_nothing() -> None:
    chex.assert_trees_all_close(attended(ROWS, 0.0), attended(ROWS, 37.5), atol=1e-5)


def test_distances_count() -> None:
    here = attended(ROWS, 0.0)
    assert np.abs(attended(ROWS, 0.0, offset=1.0) - here).max() > 1e-3
    assert np.abs(attended(ROWS, 0.0, spread=2.0) - here).max() > 1e-3


def view(lengths: list[int], room: int = TOKENS) -> Features:
    mask = np.arange(room)[None] < np.asarray(lengths)[:, None]
    return Features(ROWS[:, :room], mask, np.zeros(mask.shape, np.int32))


@cache
def made(part: str, rotary: bool) -> tuple[Any, Any]:
    """A compressor as a compiled function of parameters and views, and some parameters."""
    sizes = {"width": 16, "heads": 2, "depth": 1, "encoder_layers": 1, "rotary": rotary}
    if part == "perceiver":
        module = perceiver.Config(slots=4, **sizes).build(DIMS)  # type: ignore[arg-type]
    else:
        module = window.Config(size=3, **sizes).build(DIMS)  # type: ignore[arg-type,assignment]
    shapes = jax.eval_shape(module.init, jax.random.key(0), {"source": view([12, 12])})
    return jax.jit(module.apply), draw(shapes, 0, 0.3)


@pytest.mark.parametrize("part", ["perceiver", "window"])
def test_padding_changes_nothing(part: str) -> None:
    """Without rotary attention, tests of the compressors say so."""
    apply, params = made(part, True)
    whole = jax.device_get(apply(params, {"source": view([9, 6])}))
    cut = jax.device_get(apply(params, {"source": view([9, 6], room=9)}))
    slots = whole.slots[:, : cut.mask.shape[1]]
    chex.assert_trees_all_close(slots[cut.mask], cut.slots[cut.mask], atol=1e-5)


@pytest.mark.parametrize("part", ["perceiver", "window"])
def test_rotary_changes_the_latent_but_not_the_parameters(part: str) -> None:
    (plain, params), (turned, own) = made(part, False), made(part, True)
    chex.assert_trees_all_equal(params["params"], own["params"])
    seen = {"source": view([12, 12])}
    apart = np.asarray(plain(params, seen).slots) - np.asarray(turned(own, seen).slots)
    assert np.abs(apart).max() > 1e-4


def test_odd_heads_cannot_be_turned() -> None:
    with pytest.raises(UserError, match="3 a head; choose an even number"):
        window.Config(size=3, width=6, heads=2, rotary=True)
    with pytest.raises(UserError, match="3 a head; choose an even number"):
        perceiver.Config(slots=4, width=6, heads=2, rotary=True)
    module = perceiver.Config(slots=4, width=None, heads=2, rotary=True).build(DIMS)
    with pytest.raises(UserError, match="3 a head; choose an even number"):
        module.init(jax.random.key(0), {"source": view([12, 12])})


def test_many_attention_weights_are_computed_again_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack, mask = Stack(depth=4, heads=2, dropout=0.5), np.ones((2, 96), bool)
    x = np.random.default_rng(0).standard_normal((2, 96, WIDTH)).astype(np.float32)
    params = draw(jax.eval_shape(stack.init, jax.random.key(1), x, mask), 1, 0.3)

    def loss(params: Array) -> Array:
        y = stack.apply(params, x, mask, train=True, rngs={"dropout": jax.random.key(2)})
        return jnp.mean(jnp.square(y))  # type: ignore[arg-type]

    def run() -> tuple[Array, int]:
        compiled = jax.jit(jax.grad(lambda p: loss(p))).lower(params).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return compiled(params), memory.temp_size_in_bytes

    kept, much = run()
    monkeypatch.setattr(transformer, "KEPT_WEIGHTS", 1000)
    again, little = run()
    chex.assert_trees_all_close(again, kept, rtol=1e-4, atol=1e-6)
    assert little < 0.6 * much
