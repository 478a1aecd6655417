"""The device mesh with axes `data`, `fsdp` and `tensor`, and the one table of what lies where.

There is always a mesh: a laptop has one of 1 x 1 x 1. Rows are split over `data` and `fsdp`. The
matrices of frozen models, the bridge and its optimiser are kept in pieces over `fsdp` and put
together where they are used (`lw_jax.models.split`), so that no device holds all of them. Heads,
MLP columns and vocabulary are split over `tensor`, and computed with as they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lw_jax.errors import UserError
from lw_jax.utils.bounds import Checked

AXES = ("data", "fsdp", "tensor")
RULES: Mapping[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp"),  # of a batch
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "width": ("fsdp",),  # of a frozen model's matrices; its vectors are whole everywhere
    "largest": ("fsdp",),  # axis of an array of the bridge, the heads, the optimiser, an average
}
"""Over which axes of the mesh a logical axis is split, where their sizes divide it. Whatever is not
named here is whole on every device."""


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Sizes (data, fsdp, tensor) of the mesh on a number of devices, without those of the sender's
    own; a smaller mesh leaves devices idle.

    Raises:
        UserError: the config asks for more devices than there are, or for sizes that do not
            divide their number.
    """
    if config.sender is not None:
        own = config.sender.count
        if own >= devices:
            raise UserError(
                f"mesh.sender: {own} devices of its own asked for; there are {devices}, and "
                "training needs one: lower its data, fsdp or tensor, or leave mesh.sender out"
            )
        devices -= own
    inner = config.fsdp * config.tensor
    sizes = " x ".join(
        f"{name} {size}"
        for name, size in (("mesh.fsdp", config.fsdp), ("mesh.tensor", config.tensor))
        if size > 1
    )
    if inner > devices:
        raise UserError(
            f"{sizes}: {inner} devices asked for; there are {devices}{_beside(config)}: "
            "lower it, or run on more"
        )
    if config.data == -1:
        if devices % inner:
            raise UserError(
                f"{sizes}: {inner} does not divide the {devices} devices{_beside(config)}; "
                "change it, or set mesh.data to use fewer"
            )
        return devices // inner, config.fsdp, config.tensor
    if config.data * inner > devices:
        both = f" x {sizes}" if sizes else ""
        raise UserError(
            f"mesh.data: {config.data}{both} asks for {config.data * inner} devices; "
            f"there are {devices}{_beside(config)}: lower it, or run on more"
        )
    return config.data, config.fsdp, config.tensor


def _beside(config: MeshConfig) -> str:
    """What stands behind a number of devices of which some are the sender's."""
    return "" if config.sender is None else f" beside the sender's {config.sender.count}"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config, over `devices` (all of them by default), without those of the sender's
    own, which are the last (`make_sender_mesh`).

    Raises:
        UserError: it does not fit them, or would leave all devices of a host idle.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    if config.sender is not None:
        devices = devices[: -config.sender.count]
    used = devices[: shape[0] * shape[1] * shape[2]]
    hosts = {device.process_index for device in devices}
    if len(idle := hosts - {device.process_index for device in used}):
        raise UserError(
            f"mesh: {len(used)} of {len(devices)} devices leave {len(idle)} of {len(hosts)} "
            "processes without one: raise mesh.data, or start fewer processes"
        )
    return _mesh(shape, used)


def make_sender_mesh(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
    """The mesh of the sender's own devices, the last of `devices`; None: it has none.

    Raises:
        UserError: there are too few devices, or they are of several processes.
    """
    if config.sender is None:
        return None
    devices = list(jax.devices() if devices is None else devices)
    mesh_shape(config, len(devices))  # raises if there are too few
    if len({device.process_index for device in devices}) > 1:
        raise UserError(
            "mesh.sender: devices of its own can be had in one process alone, and there are "
            "several; leave it out, and spread the models with mesh.fsdp or mesh.tensor"
        )
    own = config.sender
    return _mesh((own.data, own.fsdp, own.tensor), devices[-own.count :])


def _mesh(shape: tuple[int, int, int], devices: list[jax.Device]) -> Mesh:
    # make_mesh's own default is Explicit axes, where linen's row-parallel Dense and Embed raise.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def ways(mesh: Mesh, logical: str) -> int:
    """Over how many devices a logical axis of `RULES` is split where they divide it."""
    sizes = dict(mesh.shape)
    return int(np.prod([sizes.get(name, 1) for name in RULES.get(logical, ())]))


def over(mesh: Mesh, logical: str) -> Any:
    """The mesh axes that split a logical axis, as a part of a `PartitionSpec`; None: none does."""
    sizes = dict(mesh.shape)
    names = tuple(name for name in RULES.get(logical, ()) if sizes.get(name, 1) > 1)
    return names[0] if len(names) == 1 else names or None


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    split = over(mesh, "rows")
    return NamedSharding(mesh, PartitionSpec("data" if split is None else split))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def trained_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Where an array of what is trained lies (a parameter, its moments, its average): a matrix is
    split along the largest axis that `fsdp` divides, the first of equal ones.

    Args:
        mesh: the device mesh.
        shape: of the array.
    """
    split = over(mesh, "largest")
    if split is None or len(shape) < 2:
        return replicated(mesh)
    fits = [i for i, size in enumerate(shape) if size and size % ways(mesh, "largest") == 0]
    if not fits:
        return replicated(mesh)
    at = max(fits, key=lambda i: (shape[i], -i))
    return NamedSharding(mesh, PartitionSpec(*(split if i == at else None for i in range(at + 1))))


def trained_shardings(mesh: Mesh, tree: Any) -> Any:
    """`trained_sharding` of every leaf; random keys are everywhere."""

    def of(leaf: Any) -> NamedSharding:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
            return replicated(mesh)
        return trained_sharding(mesh, leaf.shape)

    return jax.tree.map(of, tree)


def put_trained(mesh: Mesh, tree: Any) -> Any:
    """What is trained, laid out on the mesh."""
    return put(tree, trained_shardings(mesh, tree))


def put(tree: Any, where: Any) -> Any:
    """Arrays on the devices, also where these are of several hosts, each of which has the arrays.

    Args:
        tree: arrays of the host or of its devices, or that lie on all hosts.
        where: a sharding for all of them, or a tree of shardings.
    """
    several = [s for s in jax.tree.leaves(where) if not s.is_fully_addressable]
    if not several:
        return jax.device_put(tree, where)
    each = jax.tree.map(lambda _: where, tree) if isinstance(where, NamedSharding) else where
    return jax.tree.map(_put, tree, each)


def _put(x: Any, where: NamedSharding) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding == where else jax.jit(lambda x: x, out_shardings=where)(x)
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), where), impl=impl)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda at: host[at])


def put_batch(mesh: Mesh, batch: Any, rows: slice | None = None) -> Any:
    """A batch of host arrays on the mesh, rows over `data` and `fsdp`.

    Args:
        mesh: the device mesh.
        batch: arrays of all rows, or of those that this process holds.
        rows: the share of all rows that the batch has, in parts of their number
            (`rows_here`); None: all.
    """
    where = batch_sharding(mesh)
    if where.is_fully_addressable:
        return jax.device_put(batch, where)

    def of(x: Any) -> Any:
        x = np.asarray(x)
        parts = 1 if rows is None else ways(mesh, "rows") // (rows.stop - rows.start)
        begin = 0 if rows is None else rows.start * (x.shape[0] // (rows.stop - rows.start))
        shape = (x.shape[0] * parts, *x.shape[1:])

        def piece(at: Any) -> Any:
            one = at[0].indices(shape[0])
            return x[one[0] - begin : one[1] - begin]

        return jax.make_array_from_callback(shape, where, piece)

    return jax.tree.map(of, batch)


def moved_rows(x: jax.Array, where: NamedSharding, rows: int) -> jax.Array:
    """The first rows of an array that is split by rows on some devices, on others: pieces go from
    device to device, and the host waits for nothing.

    Args:
        x: [B, ...] with whole rows on every device.
        where: the same of the devices that it goes to, all of this process.
        rows: how many.
    """
    shape, every = (rows, *x.shape[1:]), x.shape[0]
    held = {at.index[0].indices(every)[:2]: at.data for at in x.addressable_shards}
    pieces = []
    for device, at in where.addressable_devices_indices_map(shape).items():
        first, last = at[0].indices(rows)[:2] if at else (0, rows)
        parts = [
            jax.device_put(_rows(data, max(first, a) - a, min(last, b) - a), device)
            for (a, b), data in sorted(held.items(), key=lambda one: one[0])
            if max(first, a) < min(last, b)
        ]
        pieces.append(parts[0] if len(parts) == 1 else jnp.concatenate(parts))
    return jax.make_array_from_single_device_arrays(shape, where, pieces)


def _rows(x: jax.Array, first: int, last: int) -> jax.Array:
    return x if (first, last) == (0, x.shape[0]) else x[first:last]


def rows_here(mesh: Mesh) -> slice | None:
    """Which parts of a batch the devices of this process hold, of `ways(mesh, "rows")` parts; None:
    all, or not side by side."""
    many = ways(mesh, "rows")
    held = batch_sharding(mesh).addressable_devices_indices_map((many,)).values()
    parts = sorted({at[0].indices(many)[0] for at in held if at is not None})
    if len(parts) == many or parts != list(range(parts[0], parts[-1] + 1)):
        return None
    return slice(parts[0], parts[-1] + 1)


def fetch(tree: Any) -> Any:
    """Arrays on the host; those that lie on several hosts are put together, by all of them."""

    def of(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(of, tree))


Devices = Annotated[int, Ge(1), Le(2**16)]


@dataclass(frozen=True)
class SenderMesh(Checked):
    """Devices of the sender's own: the last ones, which take no part in training.

    Args:
        data: devices over which rows are split.
        fsdp: devices over which rows are split as well, and the sender's weights.
        tensor: devices over which its heads, MLP columns and vocabulary are split.
    """

    data: Devices = 1
    fsdp: Devices = 1
    tensor: Devices = 1

    @property
    def count(self) -> int:
        """How many they are."""
        return self.data * self.fsdp * self.tensor


@dataclass(frozen=True)
class MeshConfig(Checked):
    """The device mesh, axes `data`, `fsdp` and `tensor`.

    Args:
        data: devices over which rows are split; -1 for the rest.
        fsdp: devices over which rows are split as well, and weights, bridge and optimiser, which
            are put together where they are used: for models that do not fit on one device.
        tensor: devices over which heads, MLP columns and vocabulary are split, each computing its
            part: for models that do not fit on one device, and for quicker answers.
        sender: devices of the sender's own, besides these; null: it is on the same.
    """

    data: Annotated[int, Ge(-1), Le(2**16)] = -1
    fsdp: Devices = 1
    tensor: Devices = 1
    sender: SenderMesh | None = None

    def __post_init__(self) -> None:
        if self.data == 0:
            raise UserError("data: expected at least 1, or -1 for the rest; got 0")
