"""The mesh that a config asks for, on eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lw_jax.config.renamed import with_new_names
from lw_jax.errors import UserError
from lw_jax.mesh import (
    AXES,
    MeshConfig,
    SenderMesh,
    make_mesh,
    make_sender_mesh,
    mesh_shape,
    put_batch,
    put_trained,
    replicated,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(tensor=2), (4, 1, 2)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=1), (1, 1, 1)),
        (MeshConfig(data=3, tensor=2), (3, 1, 2)),
        (MeshConfig(fsdp=2, sender=SenderMesh(tensor=2)), (3, 2, 1)),
    ],
)
def test_shapes(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(AXES, shape, strict=True))
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MeshConfig(tensor=3), "mesh.tensor 3: 3 does not divide the 8 devices; change it"),
        (
            MeshConfig(fsdp=2, tensor=8),
            "mesh.fsdp 2 x mesh.tensor 8: 16 devices asked for; there are 8",
        ),
        (MeshConfig(data=5, tensor=2), "asks for 10 devices; there are 8: lower it"),
        (MeshConfig(sender=SenderMesh(4, 2)), "mesh.sender: 8 devices of its own asked for"),
        (
            MeshConfig(fsdp=4, sender=SenderMesh(data=2)),
            "mesh.fsdp 4: 4 does not divide the 6 devices beside the sender's 2",
        ),
    ],
)
def test_meshes_that_do_not_fit(config: MeshConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_mesh(config)


def test_the_last_devices_are_the_senders_own() -> None:
    config = MeshConfig(data=2, sender=SenderMesh(data=1, tensor=3))
    own = make_sender_mesh(config)
    assert own is not None and list(own.devices.flat) == jax.devices()[-3:]
    assert list(make_mesh(config).devices.flat) == jax.devices()[:2]
    assert make_sender_mesh(MeshConfig()) is None


def test_a_laptop_has_a_mesh() -> None:
    assert mesh_shape(MeshConfig(), 1) == (1, 1, 1)


def test_rows_are_split_over_data() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = put_batch(mesh, {"ids": np.zeros((8, 3), np.int32), "valid": np.ones(8, bool)})
    assert {s.data.shape for s in batch["ids"].addressable_shards} == {(2, 3)}
    assert {s.data.shape for s in batch["valid"].addressable_shards} == {(2,)}
    whole = jax.device_put(jnp.zeros((8, 3)), replicated(mesh))
    assert {s.data.shape for s in whole.addressable_shards} == {(8, 3)}


def test_what_is_trained_is_split_along_its_largest_axis() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4))
    shapes = {"mlp": (24, 96), "stack": (3, 10, 8), "odd": (3, 5), "bias": (96,)}
    tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    placed = put_trained(mesh, tree | {"rng": jax.random.key(0)})
    held = {n: placed[n].sharding.shard_shape(shape) for n, shape in shapes.items()}
    assert held == {"mlp": (24, 24), "stack": (3, 10, 2), "odd": (3, 5), "bias": (96,)}
    one = put_trained(make_mesh(MeshConfig()), tree)
    assert all(x.sharding.is_fully_replicated for x in one.values())


def test_the_earlier_name_of_the_tensor_axis() -> None:
    found = with_new_names(MeshConfig, {"data": 1, "model": 2})
    assert found == {"data": 1, "tensor": 2}
