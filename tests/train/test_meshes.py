"""Every mesh gives the numbers of one device."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import chex
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from lw_jax.bridge.apart import SenderApart
from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, ReaderConfig
from lw_jax.mesh import (
    MeshConfig,
    SenderMesh,
    batch_sharding,
    make_mesh,
    make_sender_mesh,
    put_batch,
    put_trained,
)
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.models.spec import FrozenSpec
from lw_jax.objectives import answer_ce
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import soft_tokens
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.utils.schedule import Schedule
from tests.bridge.test_step import OBJECTIVES, batch, config
from tests.tiny.receiver import arch, models_of

HEADS = 8
DIMS = BridgeDims(24, 2, 8, {"r": ModelDims(24, 2, HEADS, 6, 0.3, (1.0, 1.0), (1.0, 1.0))})
EIGHT = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
ONE = (1, 1, 1)
FEW = 3
ONE_PASS = ObjectivesConfig(answer_ce=answer_ce.Config())
"""Of few steps; kd on several devices is in `tests/bridge/test_step.py`, and in the long ones."""


def frozen_on(mesh: Any, unroll: str) -> FrozenModels:
    """Random models on a mesh as a run lays them out."""

    def of(family: str, name: str) -> Any:
        shape = replace(arch(family), heads=HEADS, kv_heads=HEADS)
        how: dict[str, Any] = {"dtype": "float32", "unroll": unroll, "random_weights": 1}
        return FrozenSpec(name, ModelConfig("model", **how), shape, SimpleNamespace()).load(mesh)  # type: ignore[arg-type]

    return models_of(of("llama", "sender"), {"r": of("mistral", "r")})


def models_on(
    mesh: Mesh, own: Mesh | None, unroll: str = "always"
) -> tuple[FrozenModels, SenderApart | None]:
    """Random models, the sender on devices of its own if there are some."""
    frozen = frozen_on(mesh, unroll)
    if own is None:
        return frozen, None
    sender = frozen_on(own, unroll).sender
    assert sender is not None
    apart = SenderApart(sender, own)  # type: ignore[arg-type]
    return replace(frozen, sender=apart.elsewhere), apart


@cache
def begun(cfg: BridgeConfig) -> Any:
    """A bridge's parameters on the host."""
    return jax.device_get(jax.jit(Bridge(cfg, DIMS).init)(jax.random.key(0)))


@cache
def trained(
    shape: tuple[int, int, int],
    steps: int,
    name: str = "adamw",
    unroll: str = "always",
    remat: Any = "full",
    sender: SenderMesh | None = None,
) -> tuple[Any, list[float]]:
    """Parameters after some steps on a mesh, and the losses; `sender`: on devices of its own."""
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    split = MeshConfig(**sizes, sender=sender)
    devices = jax.devices()[: int(np.prod(shape)) + (0 if sender is None else sender.count)]
    mesh = make_mesh(split, devices)
    few: dict[str, Any] = {"reader": ReaderConfig(soft_tokens=soft_tokens.Config())}
    cfg = config(**(few if steps <= FEW else {}))
    bridge, params = Bridge(cfg, DIMS), {"bridge": begun(cfg), "heads": {}}
    # Adam's first steps are of full size however small a gradient is, so they begin small, as in
    # every config here: else what is measured is the rounding of gradients that are almost zero.
    rates = OptimiserConfig(name=name, schedule=Schedule(ramp=20 if name == "adamw" else 0))
    made = make_optimiser(rates, params, 20)
    train = TrainConfig(20, optimiser=rates, remat=remat)
    step = make_step(
        train, bridge, made, mesh, plan_at(ONE_PASS if steps <= FEW else OBJECTIVES, 0)
    )
    state = put_trained(mesh, new_state(params, made, jax.random.key(1)))
    frozen, apart = models_on(mesh, make_sender_mesh(split, devices), unroll)

    def batched() -> Any:
        own = {} if apart is None else apart.taps(bridge, batch(), batch_sharding(mesh))
        return put_batch(mesh, batch()) | own

    rows, losses = batched(), []
    where = jax.tree.map(lambda x: x.sharding, state)
    # A program of few steps is compiled without LLVM's optimiser, which takes longer than they do.
    quick = {"xla_backend_optimization_level": 0} if steps <= FEW else None
    program = step.lower(state, frozen, rows).compile(quick)
    for _ in range(steps):
        state, metrics = program(state, frozen, rows)
        rows = rows if apart is None else batched()
        losses.append(float(metrics["loss"]))
    now = jax.tree.map(lambda x: x.sharding, state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a == b, where, now)))
    return jax.device_get(state.params), losses


def same(
    shape: tuple[int, int, int],
    steps: int,
    tolerance: float,
    sender: SenderMesh | None = None,
    **how: Any,
) -> None:
    """A mesh, and a sender on devices of its own, against one device with both."""
    one, losses = trained(ONE, steps, **how)
    many, others = trained(shape, steps, sender=sender, **how)
    np.testing.assert_allclose(losses, others, rtol=tolerance)
    chex.assert_trees_all_close(one, many, atol=tolerance)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("shape", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_two_meshes(shape: tuple[int, int, int]) -> None:
    same(shape, FEW, 1e-5)


def test_a_sender_on_devices_of_its_own() -> None:
    """More of it in `test_sender_apart.py`."""
    same((2, 2, 1), FEW, 1e-5, sender=SenderMesh(data=4))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("adamw", 1e-5), ("muon", 2e-5)])
@pytest.mark.parametrize("shape", EIGHT)
def test_every_mesh_of_eight(shape: tuple[int, int, int], name: str, tolerance: float) -> None:
    same(shape, 20, tolerance, name=name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_weights_that_stay_whole_until_the_backward_pass(shape: tuple[int, int, int]) -> None:
    same(shape, 20, 1e-5, remat="none")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_stacked_layers(shape: tuple[int, int, int]) -> None:
    same(shape, 20, 1e-5, unroll="never")
