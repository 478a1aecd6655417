"""A sender on devices of its own gives the numbers of one device."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import chex
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from lw_jax.bridge.apart import SenderApart
from lw_jax.bridge.bridge import Bridge
from lw_jax.mesh import (
    MeshConfig,
    SenderMesh,
    batch_sharding,
    make_mesh,
    make_sender_mesh,
    moved_rows,
    put_batch,
    put_trained,
)
from lw_jax.models.frozen import FrozenModels
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser import make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.plan import plan_at
from lw_jax.train.state import new_state
from lw_jax.train.step import make_step
from lw_jax.utils.schedule import Schedule
from tests.bridge.test_step import OBJECTIVES, batch, config
from tests.train.test_meshes import DIMS, frozen_on

SPLITS = [
    (MeshConfig(data=2, fsdp=2, sender=SenderMesh(data=4)), 8),
    (MeshConfig(data=1, fsdp=4, sender=SenderMesh(tensor=2, fsdp=2)), 8),
    (MeshConfig(data=4, sender=SenderMesh(tensor=2)), 6),
    (MeshConfig(tensor=2, sender=SenderMesh(data=2)), 4),
    (MeshConfig(sender=SenderMesh()), 2),
]
ONE = MeshConfig()


def models_on(mesh: Mesh, own: Mesh | None) -> tuple[FrozenModels, SenderApart | None]:
    """The random models of `test_meshes`, the sender on devices of its own if there are some."""
    frozen = frozen_on(mesh, "always")
    if own is None:
        return frozen, None
    sender = frozen_on(own, "always").sender
    assert sender is not None
    apart = SenderApart(sender, own)  # type: ignore[arg-type]
    return replace(frozen, sender=apart.elsewhere), apart


@cache
def steps(mesh_config: MeshConfig, count: int, many: int) -> tuple[Any, list[float]]:
    """Parameters after some steps on the first `count` devices, and the losses."""
    devices = jax.devices()[:count]
    mesh, own = make_mesh(mesh_config, devices), make_sender_mesh(mesh_config, devices)
    cfg, frozen_apart = config(), models_on(mesh, own)
    frozen, apart = frozen_apart
    bridge = Bridge(cfg, DIMS)
    params = {"bridge": jax.jit(bridge.init)(jax.random.key(0)), "heads": {}}
    rates = OptimiserConfig(schedule=Schedule(ramp=20))
    made = make_optimiser(rates, params, 20)
    step = make_step(TrainConfig(20, optimiser=rates), bridge, made, mesh, plan_at(OBJECTIVES, 0))
    state = put_trained(mesh, new_state(params, made, jax.random.key(1)))
    losses = []
    for _ in range(many):
        rows = put_batch(mesh, batch())
        if apart is not None:
            rows |= apart.taps(bridge, batch(), batch_sharding(mesh))
        state, metrics = step(state, frozen, rows)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


@pytest.mark.parametrize(("mesh", "count"), SPLITS[:1])
def test_a_step(mesh: MeshConfig, count: int) -> None:
    alike(mesh, count, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "count"), SPLITS)
def test_twenty_steps(mesh: MeshConfig, count: int) -> None:
    alike(mesh, count, 20)


def alike(mesh: MeshConfig, count: int, many: int) -> None:
    one, losses = steps(ONE, 1, many)
    apart, others = steps(mesh, count, many)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    chex.assert_trees_all_close(one, apart, atol=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rows", [8, 6])
@pytest.mark.parametrize(
    ("sender", "trainer"), [((4, 1), (2, 2)), ((2, 2), (4, 1)), ((1, 1), (2, 1))]
)
def test_rows_go_from_device_to_device(
    sender: tuple[int, int], trainer: tuple[int, int], rows: int
) -> None:
    """The sender's batch is filled up where its rows do not divide; the bridge's must divide."""
    sizes = MeshConfig(
        data=trainer[0], tensor=trainer[1], sender=SenderMesh(sender[0], 1, sender[1])
    )
    mesh, own = make_mesh(sizes), make_sender_mesh(sizes)
    assert own is not None and not {*mesh.devices.flat} & {*own.devices.flat}
    filled = -(-rows // sender[0]) * sender[0]
    x = np.arange(filled * 6, dtype=np.float32).reshape(filled, 2, 3)
    rows = rows - rows % trainer[0]
    found = moved_rows(put_batch(own, x), batch_sharding(mesh), rows)
    assert found.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(found, x[:rows])
