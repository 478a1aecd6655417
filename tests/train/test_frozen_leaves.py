"""Leaves that a stage does not train: no moments, no part in the clipped norm, no step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.train.optimiser import make_optimiser, trained_leaves
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.schedule import Schedule

PARAMS = {
    "bridge": {
        "compressor": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)},
        "readers": {
            "qwen": {"lora": {"q_up": jnp.ones((2, 3, 5)), "q_down": jnp.ones((2, 5, 3))}},
            "qwen2": {"lora": {"q_up": jnp.ones((2, 3, 5)), "q_down": jnp.ones((2, 5, 3))}},
        },
        "source": {"normaliser": {"gain": jnp.ones(64), "statistics": {"mean": jnp.ones(64)}}},
    },
    "heads": {},
}
QWEN = ("readers/qwen",)
RECEIVERS = ("qwen", "qwen2")


def paths(tree: Any) -> set[str]:
    """Paths of the leaves that are true."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, x in found if x}


def gradients(outside: float) -> Any:
    """Gradients of 0.01 for the reader of qwen, and `outside` for all other leaves."""
    trained = trained_leaves(PARAMS, QWEN, RECEIVERS)
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x, own: jnp.asarray(
            draw.normal(size=x.shape).astype(np.float32) * (0.01 if own else outside)
        ),
        PARAMS,
        trained,
    )


def after(cfg: OptimiserConfig, grads: Any, steps: int = 3) -> tuple[Any, Any]:
    """The updates of the last step, and the optimiser's state."""
    optimiser = make_optimiser(cfg, PARAMS, 10, trained_leaves(PARAMS, QWEN, RECEIVERS))
    state, update = optimiser.init(PARAMS), jax.jit(optimiser.update)
    updates = None
    for _ in range(steps):
        updates, state = update(grads, state, PARAMS)
    return updates, state


CONFIGS = [
    OptimiserConfig(name=name, clip=0.1, weight_decay=0.1, schedule=Schedule())  # type: ignore[arg-type]
    for name in ("adamw", "muon")
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: c.name)
def test_frozen_leaves_do_not_move_and_do_not_change_the_step_of_others(
    cfg: OptimiserConfig,
) -> None:
    """Sums of squares of Adam's second moment would hide a scale: gradients grow over the steps."""
    optimiser = make_optimiser(cfg, PARAMS, 10, trained_leaves(PARAMS, QWEN, RECEIVERS))
    update = jax.jit(optimiser.update)
    seen = []
    for outside in (0.0, 1e3):
        state = optimiser.init(PARAMS)
        for growth in (1.0, 3.0, 0.5):
            grads = gradients(outside)
            lora = jax.tree.map(lambda x, g=growth: x * g, grads["bridge"]["readers"]["qwen"])
            grads["bridge"]["readers"]["qwen"] = lora
            updates, state = update(grads, state, PARAMS)
        seen.append(updates)
    quiet, loud = seen
    chex.assert_trees_all_equal(quiet, loud)
    moved = paths(jax.tree.map(lambda x: bool(jnp.any(x != 0)), loud))
    assert moved == {"bridge/readers/qwen/lora/q_up", "bridge/readers/qwen/lora/q_down"}


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: c.name)
def test_frozen_leaves_have_no_moments(cfg: OptimiserConfig) -> None:
    _, state = after(cfg, gradients(1.0))
    own = sum(x.size for x in jax.tree.leaves(PARAMS["bridge"]["readers"]["qwen"]))
    kept = sum(x.size for x in jax.tree.leaves(state) if x.size > 15)
    assert kept == own * (2 if cfg.name == "adamw" else 1)


def test_what_was_measured_has_no_moments_either() -> None:
    cfg = replace(CONFIGS[0], weight_decay=0.0)
    everything = make_optimiser(cfg, PARAMS, 10)
    state = everything.init(PARAMS)
    assert sum(x.shape == (64,) for x in jax.tree.leaves(state)) == 2  # of the gain
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = jax.jit(everything.update)(grads, state, PARAMS)
    still = paths(jax.tree.map(lambda x: bool(jnp.all(x == 0)), updates))
    assert still == {"bridge/source/normaliser/statistics/mean"}


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: c.name)
def test_where_all_are_trained_the_state_is_that_of_the_plain_chain(cfg: OptimiserConfig) -> None:
    params = {"bridge": {"compressor": PARAMS["bridge"]["compressor"]}}
    plain = make_optimiser(cfg, params, 10)
    masked = make_optimiser(cfg, params, 10, trained_leaves(params, (), ()))
    chex.assert_trees_all_equal(plain.init(params), masked.init(params))
    assert len(plain.init(params)) == 2  # clip, and the rest


def test_patterns_are_for_whole_names() -> None:
    def chosen(*patterns: str) -> set[str]:
        return paths(trained_leaves(PARAMS, patterns, RECEIVERS))

    qwen = {f"bridge/readers/qwen/lora/{leaf}" for leaf in ("q_up", "q_down")}
    for pattern in ("readers/qwen", "readers/qwen/", "readers_qwen", "readers_qwen_lora", "qwen"):
        assert chosen(pattern) == qwen, pattern
    assert chosen("qwen|qwen2") == chosen(r"qwen\d?") == chosen("readers") > qwen
    assert chosen(".*/q_up") == {f"bridge/readers/{name}/lora/q_up" for name in RECEIVERS}
    assert len(chosen()) == len(jax.tree.leaves(PARAMS))
    there = "there are bridge/compressor, bridge/readers, bridge/source$"
    with pytest.raises(UserError, match=rf"^train_only: 'qwe' matches no parameter; {there}"):
        chosen("qwe")
