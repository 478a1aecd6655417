"""A bottleneck with codes inside the real training step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.bottlenecks import fsq, vq
from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BottleneckConfig, ReaderConfig
from lw_jax.mesh import MeshConfig, make_mesh, put_batch, replicated
from lw_jax.objectives import answer_ce, code_entropy
from lw_jax.objectives import vq as vq_loss
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import soft_tokens
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser import groups, make_optimiser, trained_leaves
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.utils.schedule import Schedule
from tests.bridge.test_step import DIMS, batch, config, frozen_models

CODES, SLOTS, ROWS = 128, 4, 16
SOFT = ReaderConfig(soft_tokens=soft_tokens.Config())


def steps(
    bottleneck: BottleneckConfig,
    objectives: ObjectivesConfig,
    count: int,
    devices: int = 1,
    accumulate: int = 1,
    train_only: tuple[str, ...] = (),
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Parameters of the bottleneck before and after some steps, and the metrics of each."""
    cfg = replace(config(reader=SOFT), bottleneck=bottleneck)
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    bridge = Bridge(cfg, DIMS)
    params = {"bridge": jax.jit(bridge.init)(jax.random.key(0)), "heads": {}}
    before = jax.device_get(params["bridge"]["bottleneck"])
    optimiser = OptimiserConfig(lr=1e-3, schedule=Schedule())
    train = TrainConfig(20, accumulate=accumulate, optimiser=optimiser)
    trained = trained_leaves(params, train_only, DIMS.receivers)
    made = make_optimiser(optimiser, params, 20, trained)
    where = replicated(mesh)
    state = jax.device_put(new_state(params, made, jax.random.key(1)), where)
    step = make_step(train, bridge, made, mesh, plan_at(objectives, 0), trained=trained)
    frozen, rows, seen = jax.device_put(frozen_models(), where), put_batch(mesh, batch()), []
    for _ in range(count):
        state, metrics = step(state, frozen, rows)
        seen.append(jax.tree.map(float, jax.device_get(metrics)))
    return before, jax.device_get(state.params["bridge"]["bottleneck"]), seen


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "accumulate"), [(1, 4), (8, 1)])
def test_dead_codes_are_revived_from_the_whole_batch(devices: int, accumulate: int) -> None:
    """Microbatches or devices: every slot of the batch counts, and can be taken."""
    bottleneck = BottleneckConfig(vq=vq.Config(CODES, revive=2))
    objectives = ObjectivesConfig(
        answer_ce=answer_ce.Config(), vq=vq_loss.Config(), code_entropy=code_entropy.Config()
    )
    before, after, seen = steps(bottleneck, objectives, 2, devices, accumulate)
    moved = np.abs(after["codebook"] - before["codebook"]).max(axis=1) > 0.5
    # A dead code for each slot of the batch; what is left waits with two idle steps.
    assert moved.sum() == ROWS * SLOTS
    assert not after["idle"][moved].any()
    assert len(np.unique(after["codebook"][moved], axis=0)) > SLOTS
    assert (after["idle"] == 2).sum() + moved.sum() + (after["idle"][~moved] < 2).sum() == CODES
    for metrics in seen:
        assert all(np.isfinite(v) for v in metrics.values())
        assert metrics["grad_norm/bottleneck"] > 0
    assert sum(v for k, v in seen[0].items() if k.startswith("share/")) == pytest.approx(1)


@cache
def one_step(weight: float, ramp: int, train_only: tuple[str, ...]) -> tuple[Any, float]:
    """Parameters of the bottleneck after a step of the codes' own objective, and its loss."""
    bottleneck = BottleneckConfig(vq=vq.Config(CODES, revive=5))
    own = vq_loss.Config(weight=weight, schedule=Schedule(ramp=ramp))
    _, after, seen = steps(bottleneck, ObjectivesConfig(vq=own), 1, train_only=train_only)
    return after, seen[0]["loss"]


USUAL, CHANGED = (1.0, 0, ()), (3.0, 2, ("readers",))


@pytest.mark.parametrize(("how", "moves"), [(USUAL, True), (CHANGED, False)])
def test_codes_grow_idle_without_any_delivery_unless_frozen(how: Any, moves: bool) -> None:
    after, _ = one_step(*how)
    assert after["idle"].any() == moves


@pytest.mark.parametrize("chosen", [{"vq": vq.Config(8)}, {"fsq": fsq.Config((5, 5))}])
def test_every_leaf_has_its_rule(chosen: Any) -> None:
    cfg = replace(config(reader=SOFT), bottleneck=BottleneckConfig(**chosen))
    shapes = jax.eval_shape(Bridge(cfg, DIMS).init, jax.random.key(0))
    found = {k.split("/")[-1]: v for k, v in groups(shapes["bottleneck"]).items()}
    matrices = {"kernel": "muon", "bias": "adam"}
    assert found == (matrices if "fsq" in chosen else {"codebook": "adam", "idle": "adam"})


def test_a_loss_has_its_weight_and_the_factor_of_its_schedule() -> None:
    """Of one objective, from the same parameters: three times the loss, and half of that."""
    (_, one), (_, other) = one_step(*USUAL), one_step(*CHANGED)
    assert one > 0
    assert other == pytest.approx(1.5 * one, rel=1e-5)
