"""The device mesh with axes `data` and `model`. There is always one: a laptop has a 1x1 mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
from annotated_types import Ge, Le
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lw_jax.errors import UserError
from lw_jax.utils.bounds import Checked

AXES = ("data", "model")


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int]:
    """Sizes (data, model) of the mesh on a number of devices; a smaller mesh leaves devices idle.

    Raises:
        UserError: the config asks for more devices than there are, or for a size that does not
            divide their number.
    """
    if config.model > devices:
        raise UserError(f"mesh.model: {config.model} devices asked for; there are {devices}")
    if config.data == -1:
        if devices % config.model:
            raise UserError(
                f"mesh.model: {config.model} does not divide the {devices} devices; "
                "change it, or set mesh.data to use fewer"
            )
        return devices // config.model, config.model
    if config.data * config.model > devices:
        raise UserError(
            f"mesh.data: {config.data} x mesh.model {config.model} asks for "
            f"{config.data * config.model} devices; there are {devices}"
        )
    return config.data, config.model


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config, over `devices` (all of them by default)."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    # make_mesh's own default is Explicit axes, where linen's row-parallel Dense and Embed raise.
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: shape[0] * shape[1]]
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """A batch of host arrays on the mesh, rows over `data`."""
    return jax.device_put(batch, batch_sharding(mesh))


@dataclass(frozen=True)
class MeshConfig(Checked):
    """The device mesh, axes `data` and `model`.

    Args:
        data: devices over which rows are split; -1 for the rest.
        model: devices over which heads and MLP columns are split.
    """

    data: Annotated[int, Ge(-1), Le(2**16)] = -1
    model: Annotated[int, Ge(1), Le(2**16)] = 1

    def __post_init__(self) -> None:
        if self.data == 0:
            raise UserError("data: expected at least 1, or -1 for the rest; got 0")
