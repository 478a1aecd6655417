"""Streams a checkpoint onto the mesh, tensor by tensor, stacking the layers there.

The host holds one tensor at a time: 32 stacked `gate_proj` of an 8B model would be 3.75 GB. All
that is wrong with a checkpoint is collected from the files' headers and raised once, before any
weight is read.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lw_jax.errors import UserError
from lw_jax.models.checkpoint import Checkpoint
from lw_jax.models.names import FAN_IN, Part, harmless, parts
from lw_jax.models.params import Leaf, abstract, sharding
from lw_jax.models.quant import KINDS, QuantArray, quantise
from lw_jax.types import Array, PyTree

_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 5


def load_params(
    found: Checkpoint,
    mesh: Mesh,
    *,
    dtype: Any = jnp.bfloat16,
    quant: str | None = None,
    layers: int | None = None,
    head: bool = True,
) -> PyTree:
    """The parameters of a checkpoint, laid out on the mesh by `params.sharding`.

    Args:
        dtype: of the weights on the mesh.
        quant: "int8" or "nf4" stores the matrices of the layers and the head in fewer bits.
        layers: stack only the first layers (a sender's, up to its highest tap; 0: its embeddings
            alone); default all.
        head: False leaves the final norm and the output head in the file.

    Raises:
        UserError: one line with all that is missing, unexpected or of the wrong shape or dtype.
    """
    if quant is not None and quant not in KINDS:
        raise UserError(f"weights of kind {quant!r} are not known; choose from {', '.join(KINDS)}")
    if layers is not None and not 0 <= layers <= found.arch.layers:
        raise UserError(f"{found.directory}: cannot load {layers} of {found.arch.layers} layers")
    wanted = list(parts(found.arch, layers, head, found.files))
    tree = abstract(found.arch, dtype, layers, head)
    with ExitStack() as stack:
        opened = _open(stack, found, {part.name for part in wanted})
        _check(found, wanted, opened, layers, head)
        loaded: dict[str, Any] = {"layers": {}}
        for part in wanted:
            leaf = tree[part.leaf] if part.layer is None else tree["layers"][part.leaf]
            place = loaded if part.layer is None else loaded["layers"]
            tensor = part.from_stored(opened[found.files[part.name]].get_tensor(part.name))
            kind = quant if part.leaf in FAN_IN else None
            one = _on_mesh(tensor, _without_stack(leaf, part), mesh)
            if part.layer is None:
                place[part.leaf] = _convert(one, dtype, part.fan_in, kind)
                continue
            if part.layer == 0:
                place[part.leaf] = _room(one, leaf, mesh, part.fan_in, kind)
            place[part.leaf] = _stack_in(
                place[part.leaf], one, np.int32(part.layer), dtype, part.fan_in, kind
            )
    return loaded


def _open(stack: ExitStack, found: Checkpoint, names: set[str]) -> dict[Path, Any]:
    opened: dict[Path, Any] = {}
    for path in sorted({path for name, path in found.files.items() if name in names}):
        try:
            opened[path] = stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: is no readable safetensors file: {error}") from error
    return opened


def _check(
    found: Checkpoint,
    wanted: list[Part],
    opened: dict[Path, Any],
    layers: int | None,
    head: bool,
) -> None:
    """Raises one UserError with everything that is wrong."""
    wrong: list[str] = []
    present = {path: set(file.keys()) for path, file in opened.items()}
    for part in wanted:
        path = found.files.get(part.name)
        if path is None or part.name not in present[path]:
            wrong.append(f"{part.name} is missing")
            continue
        entry = opened[path].get_slice(part.name)
        shape, kind = tuple(entry.get_shape()), entry.get_dtype()
        if shape != part.stored_shape:
            wrong.append(f"{part.name} has shape {shape}, config.json implies {part.stored_shape}")
        if kind not in _FLOATS:
            wrong.append(f"{part.name} is {kind}, not floating point")
    names = {part.name for part in wanted}
    wrong += [
        f"{name} is unexpected"
        for name in sorted(set(found.files) | set().union(*present.values()))
        if name not in names and not harmless(name, found.arch, layers, head)
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"{found.directory}: {'; '.join(wrong[:_SHOWN])}{more}")


def _without_stack(leaf: Leaf, part: Part) -> Leaf:
    """The leaf of one layer."""
    if part.layer is None:
        return leaf
    return Leaf(leaf.shape[1:], leaf.dtype, leaf.axes[1:], leaf.init)


def _on_mesh(tensor: NDArray, leaf: Leaf, mesh: Mesh) -> Array:
    """One tensor on the mesh in its file's dtype; each device is sent its own part."""
    if tensor.dtype == np.float64:
        tensor = tensor.astype(np.float32)
    return jax.make_array_from_callback(
        tensor.shape, sharding(leaf, mesh), lambda at: np.ascontiguousarray(tensor[at])
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _convert(one: Array, dtype: Any, fan_in: int, kind: str | None) -> Array | QuantArray:
    return quantise(one, fan_in, kind) if kind else one.astype(dtype)


@partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=(0,))
def _stack_in(
    stack: Any, one: Array, layer: Array, dtype: Any, fan_in: int, kind: str | None
) -> Any:
    """Writes one layer's tensor into the stack, in place."""
    return jax.tree.map(
        lambda whole, x: jax.lax.dynamic_update_index_in_dim(whole, x, layer, 0),
        stack,
        _convert(one, dtype, fan_in, kind),
    )


def _room(one: Array, leaf: Leaf, mesh: Mesh, fan_in: int, kind: str | None) -> Any:
    """A stack of zeros on the mesh, sharded like the leaf (stored weights: like their codes)."""
    shapes = jax.eval_shape(lambda x: _convert(x, leaf.dtype, fan_in, kind), one)
    axes = leaf.axes[1:]

    def place(entry: jax.ShapeDtypeStruct) -> NamedSharding:
        # An axis that storage has folded (nf4 fan-in) or shortened is replicated.
        outs = axes[fan_in:]
        names = axes if entry.shape == leaf.shape[1:] else (None,) * (entry.ndim - len(outs)) + outs
        part = sharding(Leaf(entry.shape, entry.dtype, names, "zeros"), mesh).spec
        return NamedSharding(mesh, PartitionSpec(None, *part))

    placed = jax.tree.map(place, shapes)
    count = leaf.shape[0]
    make = jax.jit(
        lambda: jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes),
        out_shardings=placed,
    )
    return make()
