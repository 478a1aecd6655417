"""A sender on devices of its own gives the numbers of one device.

Of few steps in `test_meshes.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from lw_jax.mesh import (
    MeshConfig,
    SenderMesh,
    batch_sharding,
    make_mesh,
    make_sender_mesh,
    moved_rows,
    put_batch,
)
from tests.train.test_meshes import same

SPLITS = [
    ((2, 2, 1), SenderMesh(data=4)),
    ((1, 4, 1), SenderMesh(tensor=2, fsdp=2)),
    ((4, 1, 1), SenderMesh(tensor=2)),
    ((1, 1, 2), SenderMesh(data=2)),
    ((1, 1, 1), SenderMesh()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "sender"), SPLITS)
def test_twenty_steps(shape: tuple[int, int, int], sender: SenderMesh) -> None:
    same(shape, 20, 1e-5, sender=sender)


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
