"""A LoRA on the sender: nothing at first, trained with the bridge, and used wherever it encodes."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import window
from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.layers.low_rank import LowRankConfig
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.dims import BridgeDims, sizes
from lw_jax.objectives import answer_ce
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import soft_tokens
from lw_jax.runs.exported import load_bridge, save_bridge
from lw_jax.sources import hidden_states
from lw_jax.text.collate import Collate, measure
from lw_jax.train.checkpoint import component_counts
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser import groups as groups_of
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import context_of, plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from tests.tiny.receiver import LAYOUT, arch, groups, model, models_of, text_tokenizer

LORA = LowRankConfig(r=2, targets=("q", "o"), layers=1)


def config(edited: bool = True) -> BridgeConfig:
    source = hidden_states.Config(layers=(2,), lora=LORA if edited else None)
    return BridgeConfig(
        latent_dim=8,
        source=SourceConfig(hidden_states=source),
        compressor=CompressorConfig(window=window.Config(size=4, width=8, heads=2, depth=0)),
        reader=ReaderConfig(soft_tokens=soft_tokens.Config()),
    )


DIMS = BridgeDims(24, 1, 8, {"r": sizes(arch())}, sender=sizes(arch("llama"), 2))


def bridge(edited: bool = True) -> Bridge:
    return Bridge(config(edited), DIMS)


@cache
def batch() -> dict[str, np.ndarray]:
    some, tokenizer = groups(4, questions=1), {"r": text_tokenizer()}
    lengths = measure(LAYOUT, text_tokenizer("llama"), tokenizer, some)
    return Collate(LAYOUT, text_tokenizer("llama"), tokenizer, lengths)(some)


@cache
def fresh() -> Any:
    return jax.jit(bridge().init)(jax.random.key(0))


def moved() -> Any:
    """Parameters whose LoRA edits something."""
    own, rng = jax.device_get(fresh()["source"]["lora"]), np.random.default_rng(1)
    edits = {
        k: jnp.asarray(x + np.float32(0.3 * rng.standard_normal(x.shape))) for k, x in own.items()
    }
    return {**fresh(), "source": {"lora": edits}}


def states(params: Any, edited: bool = True) -> np.ndarray:
    return np.asarray(_states(model("llama"), params, edited))


@partial(jax.jit, static_argnums=2)
def _states(sender: Any, params: Any, edited: bool) -> jax.Array:
    return bridge(edited).extract(sender, batch(), params)["source"].states


def test_it_starts_as_the_frozen_sender() -> None:
    chex.assert_trees_all_equal(states(fresh()), states(None, edited=False))
    chex.assert_trees_all_equal(states(None), states(None, edited=False))
    assert np.abs(states(moved()) - states(None)).max() > 0.1


def test_gradients_reach_the_lora_and_nothing_else_of_the_sender() -> None:
    def total(sender: Any, params: Any, edited: bool) -> jax.Array:
        tokenizer = model("llama").replace(params=sender)  # type: ignore[attr-defined]
        taps = bridge(edited).extract(tokenizer, batch(), params)["source"]
        return jnp.sum(taps.states**2)

    @jax.jit
    def slopes(sender: Any, params: Any) -> tuple[Any, Any]:
        edits = jax.grad(total, argnums=1)(sender, params, True)["source"]["lora"]
        return edits, jax.grad(total)(sender, None, False)

    grad, none = jax.device_get(slopes(model("llama").params, fresh()))
    assert set(grad) == {"q_down", "q_up", "o_down", "o_up"}
    assert all(grad[name].any() for name in ("q_up", "o_up"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


def test_every_way_to_a_latent_uses_it() -> None:
    frozen_models = models_of(model("llama"))

    @jax.jit
    def both(params: Any) -> tuple[jax.Array, jax.Array]:
        ctx = EvalContext(frozen_models, params, None, bridge(), "r")
        context = context_of(bridge(), params, frozen_models, batch(), jax.random.key(0), False)
        return context.latent.slots, ctx.encode(batch()).slots

    found = []
    for params in (fresh(), moved()):
        in_a_step, alone = jax.device_get(both(params))
        chex.assert_trees_all_close(in_a_step, alone, atol=1e-5)
        found.append(alone)
    without = {k: v for k, v in fresh().items() if k != "source"}
    plain = EvalContext(frozen_models, without, None, bridge(edited=False), "r")
    frozen = np.asarray(jax.jit(lambda: plain.encode(batch()).slots)())
    chex.assert_trees_all_close(found[0], frozen, atol=1e-5)
    assert np.abs(found[1] - frozen).max() > 0.05


def test_the_loss_of_a_latent_reaches_it() -> None:
    frozen_models = models_of(model("llama"))

    @jax.jit
    def grad_of(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            seen = context_of(bridge(), params, frozen_models, batch(), jax.random.key(0), True)
            return jnp.sum(seen.latent.slots**2)

        return jax.grad(loss)(params)["source"]["lora"]

    assert all(leaf.any() for leaf in jax.tree.leaves(jax.device_get(grad_of(moved()))))
    kinds = groups_of({"bridge": fresh()})
    assert {kinds[f"bridge/source/lora/{leaf}"] for leaf in fresh()["source"]["lora"]} == {"muon"}


def test_it_is_counted_and_shipped(tmp_path: Any) -> None:
    assert component_counts({"bridge": fresh()})["bridge/source"] == 2 * (24 * 2 + 2 * 24)
    save_bridge(tmp_path, moved(), {"step": 1, "fingerprints": {}})
    read, _ = load_bridge(tmp_path, moved())
    chex.assert_trees_all_close(read["source"], moved()["source"], rtol=1e-2)


@pytest.mark.slow  # compiles a whole step
def test_a_step_trains_it() -> None:
    frozen_models = models_of(model("llama"))
    params = {"bridge": fresh(), "heads": {}}
    made = make_optimiser(OptimiserConfig(name="muon", lr=0.01), params, 4)
    state = new_state(jax.tree.map(jnp.copy, params), made, jax.random.key(1))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    objectives = ObjectivesConfig(answer_ce=answer_ce.Config())
    step = make_step(TrainConfig(4), bridge(), made, mesh, plan_at(objectives, 3))
    for _ in range(2):
        state, metrics = step(state, frozen_models, batch())
    assert float(metrics["grad_norm/source"]) > 0
    after, before = state.params["bridge"]["source"]["lora"], fresh()["source"]["lora"]
    for leaf in before:
        assert not np.allclose(after[leaf], before[leaf], atol=1e-6), leaf


def test_layers_that_are_not_run_are_refused() -> None:
    def dims(**options: Any) -> Any:
        return hidden_states.Config(**options).shape(arch("llama"))

    assert dims(layers=(1,), lora=LowRankConfig(layers=1)) == (24, 1, 320)
    with pytest.raises(UserError, match=r"lora\.layers: 2 of the 1 layers run"):
        dims(layers=(1,), lora=LowRankConfig(layers=2))
    with pytest.raises(UserError, match=r"lora\.layers: all of the 0 layers run"):
        dims(layers=(0,), lora=LowRankConfig())
    with pytest.raises(UserError, match=r"lora\.dropout: a sender's edits have none"):
        hidden_states.Config(lora=LowRankConfig(dropout=0.1))
