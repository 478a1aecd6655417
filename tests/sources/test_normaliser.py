"""Whitened by what was measured, coloured like the target, and no step moves what was measured."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.dims import BridgeDims
from lw_jax.sources import hidden_states
from lw_jax.sources.normaliser import Normaliser, StatisticalNormaliser, fill, normaliser_of
from lw_jax.train.optimiser import groups, make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.state import apply_gradients, new_state
from lw_jax.types import Taps

TAPS, WIDTH = 2, 6
DIMS = BridgeDims(WIDTH, TAPS, 8)


def states() -> np.ndarray:
    """Loud states [n, B, T, D] whose channels differ in mean and spread, one of them constant."""
    spread = np.asarray([5.0, 0.1, 30.0, 2.0, 0.0, 1.0])
    centre = np.asarray([40.0, 0.0, -3.0, 1.0, 7.0, 0.0])
    noise = np.random.default_rng(0).standard_normal((TAPS, 16, 12, WIDTH))
    return (noise * spread + centre).astype(np.float32)


def measured(width: int = WIDTH) -> dict[str, np.ndarray]:
    """Statistics of `states`, and of a quiet receiver."""
    x, rng = states().astype(np.float64), np.random.default_rng(1)
    return {
        "source/mean": x.mean(axis=(1, 2)),
        "source/std": x.std(axis=(1, 2)),
        "reader/mean": rng.normal(size=(1, width)) * 0.01,
        "reader/std": rng.uniform(0.01, 0.05, size=(1, width)),
    }


def filled(config: Normaliser, width: int = WIDTH) -> tuple[StatisticalNormaliser, Any]:
    module = StatisticalNormaliser(config)
    params = jax.jit(module.init)(jax.random.key(0), states())["params"]
    source = fill({"normaliser": params}, measured(width), config.target_of(["reader", "other"]))
    return module, source["normaliser"]


def test_states_become_like_the_targets_embeddings() -> None:
    module, params = filled(Normaliser())
    out = np.asarray(jax.jit(module.apply)({"params": params}, states()))
    found, moving = measured(), states().std(axis=(1, 2)) > 0
    for tap in range(TAPS):
        np.testing.assert_allclose(out[tap].mean(axis=(0, 1)), found["reader/mean"][0], atol=1e-5)
        spread = np.where(moving[tap], found["reader/std"][0], 0.0)
        np.testing.assert_allclose(out[tap].std(axis=(0, 1)), spread, rtol=1e-4, atol=1e-7)


def test_a_target_of_another_width_gives_its_mean_and_deviation() -> None:
    module, params = filled(Normaliser(), width=4)
    out = np.asarray(jax.jit(module.apply)({"params": params}, states()))
    mean, std = (measured(4)[f"reader/{k}"][0] for k in ("mean", "std"))
    # of all entries of the embeddings: channels that differ in mean spread them as well
    entries = np.random.default_rng(0).normal(size=(200_000, 4)) * std + mean
    for channel in (0, 3):
        np.testing.assert_allclose(out[..., channel].mean(), entries.mean(), atol=2e-4)
        np.testing.assert_allclose(out[..., channel].std(), entries.std(), rtol=1e-2)


def test_unfilled_statistics_give_no_number() -> None:
    module = StatisticalNormaliser(Normaliser())
    out, _ = jax.jit(module.init_with_output)(jax.random.key(0), states())
    assert np.isnan(out).all()


def test_only_the_affine_has_gradients() -> None:
    def loss(config: Normaliser) -> Any:
        module, params = filled(config)

        @jax.jit
        @jax.grad
        def slope(params: Any) -> jax.Array:
            return jnp.sum(module.apply({"params": params}, states()) ** 3)  # type: ignore[operator]

        return jax.device_get(slope(params))

    fixed, trained = loss(Normaliser()), loss(Normaliser(trainable=True))
    assert set(fixed) == {"statistics"}
    assert set(trained) == {"statistics", "gain", "bias"}
    for tree in (fixed, trained):
        assert all(not leaf.any() for leaf in jax.tree.leaves(tree["statistics"]))
    assert trained["gain"].any()
    assert trained["bias"].any()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_no_optimiser_moves_what_was_measured(name: Any) -> None:
    _, own = filled(Normaliser(trainable=True))
    params = {
        "bridge": {
            "source": {"normaliser": own},
            "compressor": {"enter": {"kernel": jnp.asarray(np.ones((WIDTH, 4), np.float32))}},
        }
    }
    group = groups(params)
    assert group["bridge/source/normaliser/statistics/source_mean"] == "adam"
    made = make_optimiser(OptimiserConfig(name=name, lr=0.1, weight_decay=0.1), params, 10)
    state = new_state(params, made, jax.random.key(0), ema=0.9)

    def step(state: Any, rng: jax.Array) -> Any:
        # worse than training: even with gradients they must stay
        grads = jax.tree.map(lambda x: jax.random.normal(rng, x.shape), state.params)
        return apply_gradients(state, grads, made, 0.9)

    step = jax.jit(step)
    for i in range(7):
        state = step(state, jax.random.key(i))
    for tree in (state.params, state.ema):
        after = tree["bridge"]["source"]["normaliser"]
        chex.assert_trees_all_equal(after["statistics"], own["statistics"])
        assert not np.allclose(after["gain"], own["gain"])
        assert not np.allclose(tree["bridge"]["compressor"]["enter"]["kernel"], 1.0)


def test_it_is_an_option_of_the_source() -> None:
    taps = Taps(states(), np.ones((16, 12), bool), np.zeros((16, 12), np.int32))
    plain = hidden_states.Config(layers=(0, 1))
    assert normaliser_of(plain) is None
    assert "params" not in jax.eval_shape(plain.build(DIMS).init, jax.random.key(0), taps)
    options = Normaliser(target="reader")
    config = hidden_states.Config(layers=(0, 1), normaliser=options)
    assert normaliser_of(config) is options
    module = config.build(DIMS)
    made = jax.jit(module.init)(jax.random.key(0), taps)["params"]
    params = fill(made, measured(), "reader")
    own, inner = filled(options)
    given = np.asarray(jax.jit(own.apply)({"params": inner}, taps.states))
    wide = np.concatenate([given[0], given[1]], axis=-1)
    chex.assert_trees_all_close(jax.jit(module.apply)({"params": params}, taps).x, wide)
