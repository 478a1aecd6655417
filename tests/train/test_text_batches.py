"""Batches for text among those for the wire: when they come, and what they train."""

from __future__ import annotations

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import CompressorConfig, ReaderConfig
from lw_jax.bridge.paths import components, from_paths
from lw_jax.compressors import perceiver
from lw_jax.config.parse import read
from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh, put_batch, replicated
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.objectives import answer_ce, text_ce
from lw_jax.objectives.common.context import Pass
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import lora, soft_tokens
from lw_jax.train.config import TextBatches, TrainConfig
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import Plan, all_terms, context_of, plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.utils.schedule import Schedule
from tests.bridge.test_step import batch, config, frozen_models

DIMS = BridgeDims(24, 2, 8, {"r": ModelDims(24, 2, 2, 6, 0.3, heads=4)})
READERS = ReaderConfig(soft_tokens=soft_tokens.Config(), lora=lora.Config(r=2))
LORA = ("readers", "r", "lora")
BOTH = ObjectivesConfig(
    answer_ce=answer_ce.Config(schedule=Schedule(on="latent")),
    text_ce=text_ce.Config(weight=2.5, schedule=Schedule(on="text")),
)


@cache
def bridge() -> Bridge:
    queries = perceiver.Config(slots=4, width=16, heads=2, depth=0)
    return Bridge(config(reader=READERS, compressor=CompressorConfig(perceiver=queries)), DIMS)


@cache
def fresh_bridge() -> Any:
    return jax.jit(bridge().init)(jax.random.key(0))


def test_kinds_alternate_then_text_comes_now_and_then() -> None:
    kinds = TextBatches(steps=4, tail=0.25)
    assert [kinds.kind(0, "fit", s) for s in range(4)] == ["text", "latent"] * 2
    later = [kinds.kind(0, "fit", s) for s in range(4, 2004)]
    assert 0.2 < later.count("text") / 2000 < 0.3
    assert later == [kinds.kind(0, "fit", s) for s in range(4, 2004)]  # a resumed run's, too
    for other in ((1, "fit"), (0, "more")):
        assert later != [kinds.kind(*other, s) for s in range(4, 2004)]
    assert {TextBatches(steps=0).kind(0, "fit", s) for s in range(99)} == {"latent"}


def test_a_window_of_text_alone_comes_first() -> None:
    kinds = TextBatches(steps=4, pure=3)
    said = [kinds.kind(0, "fit", s) for s in range(9)]
    assert said == ["text"] * 3 + ["text", "latent"] * 2 + ["latent"] * 2


def test_a_text_batch_trains_what_reads_the_text_and_nothing_else() -> None:
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = {"bridge": fresh_bridge(), "heads": {}}
    before = jax.device_get(params["bridge"])
    made = make_optimiser(OptimiserConfig(schedule=Schedule()), params, 4)
    train = TrainConfig(4)
    frozen, rows = jax.device_put(frozen_models(), replicated(mesh)), put_batch(mesh, batch())

    def after(kind: Any) -> tuple[Any, Any]:
        state = new_state(jax.tree.map(jnp.copy, params), made, jax.random.key(1))
        state = jax.device_put(state, replicated(mesh))
        step = make_step(train, bridge(), made, mesh, plan_at(BOTH, 0, kind))
        state, metrics = step(state, frozen, rows)
        return jax.device_get(state.params["bridge"]), jax.device_get(metrics)

    read, of_text = after("text")
    wired, of_latent = after("latent")
    assert "loss/r/text_ce" in of_text and "loss/r/answer_ce" not in of_text
    assert "loss/r/answer_ce" in of_latent and "loss/r/text_ce" not in of_latent
    squares = [np.sum(np.square(x)) for x in before["readers"]["r"]["lora"].values()]
    for said in (of_text, of_latent):
        assert said["param_norm/readers/r/lora"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
        assert [name for name in said if name.startswith("param_norm/")] == [
            "param_norm/readers/r/lora"
        ]
    parts = dict(components(read))
    for path, tree in components(before):
        if path == LORA:
            assert np.abs(parts[path]["q_up"]).max() > 0
        else:
            chex.assert_trees_all_equal(parts[path], tree)
    queries = (tree["compressor"]["queries"] for tree in (wired, before))
    assert np.abs(np.subtract(*queries)).max() > 0


def test_the_text_is_read_with_the_lora_and_methods_read_it_without() -> None:
    own = fresh_bridge()
    parts = dict(components(own))
    edited = from_paths(parts | {LORA: jax.tree.map(lambda x: x + 0.3, parts[LORA])})

    @jax.jit
    def nats(params: Any) -> Any:
        context = context_of(bridge(), params, frozen_models(), batch(), jax.random.key(0), False)
        model = context.frozen.receivers["r"]
        found = []
        for asked in (Pass("text", adapted=True), Pass("text")):
            reading = context.reading("r", asked)
            scored = chunked_cross_entropy(model.arch, model.params, reading.hidden, reading.labels)
            found.append(jnp.sum(scored.nll * reading.mask))
        return found

    fresh, clean = jax.device_get(nats(own))
    assert fresh == pytest.approx(clean, rel=1e-6)  # a LoRA starts without an effect
    adapted, same = jax.device_get(nats(edited))
    assert same == clean
    assert abs(adapted - clean) > 1e-3 * clean


def test_without_a_lora_nothing_reads_the_text() -> None:
    bare = Bridge(config(reader=ReaderConfig(soft_tokens=soft_tokens.Config())), DIMS)

    def nats(rng: Any) -> Any:
        context = context_of(bare, bare.init(rng), frozen_models(), batch(), rng, True)
        return all_terms(Plan((("text_ce", text_ce.Config()),)), context, {})

    with pytest.raises(
        UserError, match=r"bridge\.reader: no low-rank edits; nothing that is trained"
    ):
        jax.eval_shape(nats, jax.random.key(0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objectives.answer_ce.schedule.on": "text"}, "no objective is for its latent batches"),
        ({"objectives.kd.schedule.on": "text"}, "schedule.on: stages.fit.train has no text"),
        (
            {
                "stages.fit.train.text_batches.steps": "4",
                "objectives.answer_ce.schedule.on": "latent",
            },
            "no objective is for its text batches",
        ),
        ({"stages.fit.train.optimiser.schedule.on": "text"}, "a learning rate has none"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(flags: dict[str, str], message: str) -> None:
    given = (
        list({"objectives.kd.weight": "1", **flags}.items())
        if "kd" in str(flags)
        else [*flags.items()]
    )
    with pytest.raises(UserError, match=message):
        read("configs/quickstart.yaml", given)
