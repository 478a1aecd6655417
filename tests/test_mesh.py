"""The mesh that a config asks for, on eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh, mesh_shape, put_batch, replicated


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1)),
        (MeshConfig(model=2), (4, 2)),
        (MeshConfig(data=1), (1, 1)),
        (MeshConfig(data=3, model=2), (3, 2)),
    ],
)
def test_shapes(config: MeshConfig, shape: tuple[int, int]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == (("data", shape[0]), ("model", shape[1]))
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MeshConfig(model=3), "mesh.model: 3 does not divide the 8 devices"),
        (MeshConfig(model=16), "mesh.model: 16 devices asked for; there are 8"),
        (MeshConfig(data=5, model=2), "asks for 10 devices; there are 8"),
    ],
)
def test_meshes_that_do_not_fit(config: MeshConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_mesh(config)


def test_a_laptop_has_a_mesh() -> None:
    assert mesh_shape(MeshConfig(), 1) == (1, 1)


def test_rows_are_split_over_data() -> None:
    mesh = make_mesh(MeshConfig(data=4, model=2))
    batch = put_batch(mesh, {"ids": np.zeros((8, 3), np.int32), "valid": np.ones(8, bool)})
    assert {s.data.shape for s in batch["ids"].addressable_shards} == {(2, 3)}
    assert {s.data.shape for s in batch["valid"].addressable_shards} == {(2,)}
    whole = jax.device_put(jnp.zeros((8, 3)), replicated(mesh))
    assert {s.data.shape for s in whole.addressable_shards} == {(8, 3)}
