"""Streams a checkpoint onto the mesh, tensor by tensor; layers are stacked or joined there.

A tensor goes to the device as the file has it, and is transposed there. A few threads read the next
ones and look for numbers that are not finite; they run ahead as far as `HELD` allows, so the host
never holds a whole model. Errors of a checkpoint are collected from the headers of its files and
raised together, before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from numpy.typing import NDArray
from safetensors import SafetensorError

from lw_jax.errors import UserError, said
from lw_jax.mesh import ways
from lw_jax.models.apart import JOINED, join, leaves_apart
from lw_jax.models.arch import Arch
from lw_jax.models.arch_keys import named
from lw_jax.models.checkpoint import Checkpoint
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.finite import not_finite
from lw_jax.models.gguf import is_gguf, open_gguf
from lw_jax.models.names import EMBED, FAN_IN, HEAD, Part, harmless, parts
from lw_jax.models.params import Leaf, abstract, depth, sharding
from lw_jax.models.quant import KINDS, QuantArray, quantise
from lw_jax.models.shards import Shard
from lw_jax.types import Array, PyTree
from lw_jax.utils.ahead import Ahead
from lw_jax.utils.compile import own_cores

_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN, _SHAPES_SHOWN = 5, 3
HELD = 3 << 29
"""Bytes of tensors that the host holds at most: read ahead, or on their way to a device. A tensor
that is larger is held alone."""
THREADS = 8
"""That read, at most; no more than this process has cores."""


def load_params(
    found: Checkpoint,
    mesh: Mesh,
    *,
    dtype: Any = jnp.bfloat16,
    quant: str | None = None,
    layers: int | None = None,
    head: bool = True,
    apart: bool = False,
    have: PyTree | None = None,
) -> PyTree:
    """The parameters of a checkpoint, laid out on the mesh as `abstract_params` says.

    Args:
        found: the checkpoint.
        mesh: the device mesh.
        dtype: dtype of the weights on the mesh.
        quant: one of `quant.KINDS` stores the matrices of the layers and the head in fewer bits;
            `float8` those of the layers.
        layers: number of layers, from the first on (a sender's, up to its highest tap; 0: its
            embeddings alone); None: all.
        head: False leaves the final norm and the output head in the file.
        apart: a decoder's layers as a tuple of dicts, see `lw_jax.models.apart`, and not stacked.
        have: parameters of the same checkpoint, loaded in the same way but for `layers` and `head`.
            What they hold is not read again, and is shared where it need not be copied.

    Raises:
        UserError: one line with everything that is missing, unexpected or of the wrong shape or
            dtype; or the first tensor that is not finite.
    """
    if quant is not None and quant not in KINDS:
        raise UserError(f"weights of kind {quant!r} are not known; choose from {', '.join(KINDS)}")
    if layers is not None and not 0 <= layers <= found.arch.layers:
        raise UserError(f"{found.directory}: cannot load {layers} of {found.arch.layers} layers")
    wanted = list(parts(found.arch, layers, head, found.files))
    tree = _tree(found.arch, mesh, dtype, layers, head, apart)
    have = {"layers": () if apart else {}} if have is None else have
    first = depth(have)
    missing = [p for p in wanted if (p.leaf not in have if p.layer is None else p.layer >= first)]
    loaded: dict[str, Any] = {name: x for name, x in have.items() if name in tree}
    by_place = {(part.layer, part.leaf): part for part in missing}
    pieces = {
        (layer, name): [by_place[layer, piece] for piece in JOINED.get(name, (name,))]
        for layer, name in _weights(missing, tree["layers"], first)
    }
    last: Any = ()
    with ExitStack() as stack:
        opened = open_files(stack, found, {part.name for part in missing})
        _check(found, wanted, missing, opened, layers, head)
        _check_tied(found, head)
        order = [part for one in pieces.values() for part in one]
        reading = stack.enter_context(_reading(found, opened, order, dtype))

        def sent(layer: int | None, name: str, leaf: Leaf) -> tuple[tuple[Array, ...], _Weight]:
            """The tensors of a weight, one or several that are joined, and what becomes of them."""
            arrays: list[Array] = []
            for part in pieces[layer, name]:
                if reading.full:
                    jax.block_until_ready((last, arrays))
                    reading.release()
                arrays.append(_on_mesh(reading.take(), part, leaf, mesh))
            ins, kind = FAN_IN.get(name, 0), _kind(name, quant)
            places = tuple(s.sharding for s in jax.tree.leaves(_stored(leaf, mesh, ins, kind)))
            joined = name if name in JOINED else ""
            shapes = tuple(part.shape for part in pieces[layer, name])
            return tuple(arrays), _Weight(joined, shapes, dtype, ins, kind, places)

        for part in missing:
            if part.layer is None:
                loaded[part.leaf] = last = _convert(*sent(None, part.leaf, tree[part.leaf]))
        if all(part.layer is None for part in missing):
            loaded["layers"] = have["layers"]
        elif apart:
            more: list[dict[str, Any]] = []
            for i, w in enumerate(tree["layers"][first:], first):
                made: dict[str, Any] = {}
                for name, leaf in w.items():
                    made[name] = last = _convert(*sent(i, name, leaf))
                more.append(made)
            loaded["layers"] = have["layers"] + tuple(more)
        else:
            loaded["layers"] = _room(
                {
                    name: _stored(leaf, mesh, FAN_IN.get(name, 0), _kind(name, quant))
                    for name, leaf in tree["layers"].items()
                }
            )
            if first:
                held = {name: have["layers"][name] for name in tree["layers"]}
                loaded["layers"] = _copy_in(loaded["layers"], held)
            for name, leaf in tree["layers"].items():
                whole = loaded["layers"].pop(name)
                for i in range(first, leaf.shape[0]):
                    one = sent(i, name, _without_stack(leaf))
                    whole = last = _stack_in(whole, np.int32(i), *one)
                loaded["layers"][name] = whole
    return loaded


def _tree(
    arch: AnyArch, mesh: Mesh, dtype: Any, layers: int | None, head: bool, apart: bool
) -> PyTree:
    """The leaves of a model as it lies on the mesh, its layers stacked or apart."""
    tree = abstract(arch, dtype, layers, head)
    if apart:
        count = arch.layers if layers is None else layers
        whole = ways(mesh, "heads") == 1
        tree["layers"] = leaves_apart(tree["layers"], count, whole) if count else ()
    return tree


def abstract_params(
    arch: AnyArch,
    mesh: Mesh,
    *,
    dtype: Any = jnp.bfloat16,
    quant: str | None = None,
    layers: int | None = None,
    head: bool = True,
    apart: bool = False,
) -> PyTree:
    """What `load_params` gives, as `jax.ShapeDtypeStruct`s with shardings; no file is opened.

    Args:
        arch: the model.
        mesh: the device mesh.
        dtype: dtype of the weights on the mesh.
        quant: one of `quant.KINDS`, for fewer bits.
        layers: number of layers, from the first on; None: all.
        head: whether the final norm and the output head are among them.
        apart: whether the layers are apart, or stacked.
    """

    def stored(path: tuple[DictKey, ...], leaf: Leaf) -> PyTree:
        name = path[-1].key
        return _stored(leaf, mesh, FAN_IN.get(name, 0), _kind(name, quant))

    return jax.tree_util.tree_map_with_path(stored, _tree(arch, mesh, dtype, layers, head, apart))


def open_files(stack: ExitStack, found: Checkpoint, names: set[str]) -> dict[Path, Any]:
    """The files that hold some tensors, open until the stack ends.

    Args:
        stack: closes them.
        found: the checkpoint.
        names: of the tensors.

    Raises:
        UserError: one cannot be read.
    """
    held: dict[Path, Any] = {}
    for path in sorted({path for name, path in found.files.items() if name in names}):
        if is_gguf(path):
            held[path] = open_gguf(path)
            continue
        try:
            held[path] = stack.enter_context(Shard(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: is no readable safetensors file: {said(error)}") from error
    return held


def check_headers(found: Checkpoint, layers: int | None = None, head: bool = True) -> None:
    """Compares the headers of a checkpoint's files with its config; no weight is read.

    Args:
        found: the checkpoint.
        layers: number of layers that are needed, from the first on; None: all.
        head: whether the final norm and the output head are needed.

    Raises:
        UserError: one line with what is missing, unexpected or of the wrong shape or dtype.
    """
    wanted = list(parts(found.arch, layers, head, found.files))
    with ExitStack() as stack:
        opened = open_files(stack, found, {part.name for part in wanted})
        _check(found, wanted, wanted, opened, layers, head)


def check_weights(
    found: Checkpoint, layers: int | None = None, head: bool = True, dtype: Any = jnp.bfloat16
) -> None:
    """Reads all weights that `load_params` would load, some at a time; keeps none.

    Args:
        found: the checkpoint; its headers are right (`check_headers`).
        layers: number of layers that are needed, from the first on; None: all.
        head: whether the final norm and the output head are needed.
        dtype: dtype in which they would be stored.

    Raises:
        UserError: a tensor cannot be read, or is not finite.
    """
    wanted = list(parts(found.arch, layers, head, found.files))
    with ExitStack() as stack:
        opened = open_files(stack, found, {part.name for part in wanted})
        _check_tied(found, head)
        reading = stack.enter_context(_reading(found, opened, wanted, dtype))
        for _ in wanted:
            reading.take()
            reading.release()


def _check(
    found: Checkpoint,
    wanted: list[Part],
    missing: list[Part],
    opened: dict[Path, Any],
    layers: int | None,
    head: bool,
) -> None:
    """Raises one UserError that lists everything that is wrong."""
    wrong: list[str] = []
    shapes: list[str] = []
    present = {path: set(file.keys()) for path, file in opened.items()}
    for part in missing:
        path = found.files.get(part.name)
        if path is None or part.name not in present[path]:
            wrong.append(f"{part.name} is missing")
            continue
        entry = opened[path].get_slice(part.name)
        shape, kind = tuple(entry.get_shape()), entry.get_dtype()
        if shape != part.stored_shape:
            shapes.append(f"{part.name} has shape {shape}, config.json implies {part.stored_shape}")
        if kind not in _FLOATS:
            wrong.append(f"{part.name} is {kind}, not floating point")
    names = {part.name for part in wanted}
    wrong += [
        f"{named(name)} is unexpected"
        for name in sorted(set(found.files) | set().union(*present.values()))
        if name not in names and not harmless(name, found.arch, layers, head)
    ]
    if wrong or shapes:
        lines = [*_first(shapes, _SHAPES_SHOWN), *_first(wrong, _SHOWN)]
        raise UserError(f"{found.directory}: {'; '.join(lines)}")


def _check_tied(found: Checkpoint, head: bool) -> None:
    """Checks that a head which the config says to be the embedding table is no other matrix.

    Raises:
        UserError: the file has another one, which transformers would use; or it cannot be read.
    """
    names = HEAD, EMBED
    if not (head and isinstance(found.arch, Arch) and found.arch.tied):
        return
    places = [found.files.get(name) for name in names]
    if any(place is None or is_gguf(place) or not place.is_file() for place in places):
        return
    with ExitStack() as stack:
        opened = open_files(stack, found, set(names))
        of_head, of_embed = (opened[place] for place in places if place is not None)
        try:
            same = of_head.same(HEAD, of_embed, EMBED)
        except (OSError, KeyError) as error:
            raise UserError(f"{found.directory}: {HEAD} cannot be read: {said(error)}") from error
    if not same:
        raise UserError(
            f"{found.directory}: config.json says tie_word_embeddings: true, and {HEAD} is another "
            f"matrix than {EMBED}; set it to false, or take {HEAD} out of the file"
        )


def _first(lines: list[str], count: int) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - count
    return lines[:count] + ([f"and {more} more"] if more > 0 else [])


def _weights(missing: list[Part], layers: Any, first: int) -> list[tuple[int | None, str]]:
    """The weights that are not there yet, by layer and name, in the order in which they are sent.

    Args:
        missing: their tensors.
        layers: the leaves of the layers, stacked or apart.
        first: the first layer that is not there.
    """
    top: list[tuple[int | None, str]] = [(None, p.leaf) for p in missing if p.layer is None]
    if len(top) == len(missing):
        return top
    if isinstance(layers, tuple):
        return top + [(i, name) for i, one in enumerate(layers[first:], first) for name in one]
    return top + [(i, name) for name, leaf in layers.items() for i in range(first, leaf.shape[0])]


def _reading(
    found: Checkpoint, opened: dict[Path, Any], order: Iterable[Part], dtype: Any
) -> Ahead[str, NDArray]:
    """Tensors of open files, read and found to be finite by threads that run ahead.

    Args:
        found: the checkpoint.
        opened: its files.
        order: of the tensors.
        dtype: in which they will be stored.
    """

    def size(name: str) -> int:
        entry = opened[found.files[name]].get_slice(name)
        return math.prod(entry.get_shape()) * (4 if entry.get_dtype() in ("F64", "F32") else 2)

    def read(name: str, go_on: Callable[[], None]) -> NDArray:
        return _read(opened[found.files[name]], found, name, dtype, go_on)

    items = [(part.name, size(part.name)) for part in order]
    return Ahead(read, items, HELD, min(THREADS, own_cores()))


def _read(
    file: Any, found: Checkpoint, name: str, dtype: Any, go_on: Callable[[], None]
) -> NDArray:
    """One tensor of an open file; float64 becomes float32.

    Args:
        file: that holds it.
        found: the checkpoint.
        name: of the tensor.
        dtype: in which it will be stored.
        go_on: is called now and then; what it raises ends the reading.

    Raises:
        UserError: it cannot be read; or has NaN or infinity, or what becomes infinite in `dtype`.
    """
    bad = 0

    def look(block: NDArray) -> None:
        nonlocal bad
        go_on()
        bad += not_finite(block, dtype)

    try:
        tensor: NDArray = file.get_tensor(name, look)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{found.files[name]}: {name} cannot be read: {said(error)}") from error
    if bad:
        raise UserError(
            f"{found.directory}: {name}: {bad} of its {tensor.size} weights are not finite (NaN or "
            "infinity); the checkpoint is damaged or was saved from a run that diverged"
        )
    return tensor


def _stacked(leaf: Leaf) -> bool:
    """Whether a leaf holds one entry per layer."""
    return leaf.axes[:1] == ("layers",)


def _without_stack(leaf: Leaf) -> Leaf:
    """The leaf of one layer."""
    return Leaf(leaf.shape[1:], leaf.dtype, leaf.axes[1:], leaf.init) if _stacked(leaf) else leaf


def _on_mesh(tensor: NDArray, part: Part, leaf: Leaf, mesh: Mesh) -> Array:
    """One tensor on the mesh as its file has it; each device is sent its own part.

    Args:
        tensor: as stored.
        part: which it is.
        leaf: of one layer, that it becomes or is a piece of.
        mesh: the device mesh.
    """
    where = sharding(leaf, mesh)
    if any(where.spec):  # first of the output axes, first of the input axes
        spec = [*where.spec, *(None,) * (len(leaf.shape) - len(where.spec))]
        ins = part.fan_in
        outs = [name for name in spec[ins:] if name is not None]
        split = [outs[0] if outs else None, spec[0]] if ins else spec[: tensor.ndim]
        where = NamedSharding(mesh, PartitionSpec(*split))
    return jax.make_array_from_callback(
        tensor.shape, where, lambda at: np.ascontiguousarray(tensor[at])
    )


class _Weight(NamedTuple):
    """What becomes of a weight's tensors.

    Attributes:
        joined: name of the matrix that they are joined to; empty: there is one tensor.
        shapes: theirs in this project's layout.
        dtype: of the weight.
        fan_in: number of its leading (contracted) axes; 0: no matrix.
        kind: see `quant.KINDS`; None: kept in `dtype`.
        places: shardings of what is kept.
    """

    joined: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    fan_in: int
    kind: str | None
    places: tuple[NamedSharding, ...]


@partial(jax.jit, static_argnums=1)
def _convert(stored: tuple[Array, ...], to: _Weight) -> Array | QuantArray:
    """A weight from its tensors as stored: in this project's layout, joined, in its dtype."""
    turned = [
        (x.T if to.fan_in else x).reshape(shape) for x, shape in zip(stored, to.shapes, strict=True)
    ]
    whole = join(to.joined, turned) if to.joined else turned[0]
    leaves, tree = jax.tree.flatten(_kept(whole, to.dtype, to.fan_in, to.kind))
    put = [jax.lax.with_sharding_constraint(x, at) for x, at in zip(leaves, to.places, strict=True)]
    done: Array | QuantArray = jax.tree.unflatten(tree, put)
    return done


def _kind(name: str, quant: str | None) -> str | None:
    """How a weight is kept: with float8 the head is in full, whose errors go straight to what is
    said."""
    return quant if name in FAN_IN and (name, quant) != ("head", "float8") else None


def _kept(whole: Array, dtype: Any, fan_in: int, kind: str | None) -> Array | QuantArray:
    """A weight as it is kept: in its dtype, or in few bits."""
    return quantise(whole, fan_in, kind) if kind else whole.astype(dtype)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _stack_in(stack: Any, layer: Array, stored: tuple[Array, ...], to: _Weight) -> Any:
    """Writes one layer's weight into the stack, in place.

    A CPU's compiler has no writing of 16-bit floats: it would take the whole stack to float32 and
    back for every layer. So they are written as integers.
    """

    def put(whole: Array, x: Array) -> Array:
        if whole.dtype not in (jnp.bfloat16, jnp.float16):
            return jax.lax.dynamic_update_index_in_dim(whole, x, layer, 0)
        bits = (jax.lax.bitcast_convert_type(y, jnp.uint16) for y in (whole, x))
        done = jax.lax.dynamic_update_index_in_dim(*bits, layer, 0)
        return jax.lax.bitcast_convert_type(done, whole.dtype)

    return jax.tree.map(put, stack, _convert(stored, to))


@partial(jax.jit, donate_argnums=(0,))
def _copy_in(stack: Any, first: Any) -> Any:
    """Writes the first layers into the stack, in place."""
    return jax.tree.map(
        lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, 0, 0), stack, first
    )


def _room(shapes: PyTree) -> PyTree:
    """Stacks of zeros on the mesh, one program for all of them.

    Args:
        shapes: `jax.ShapeDtypeStruct`s with shardings.
    """
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, _zeros(tuple(leaves))())


@lru_cache(maxsize=64)
def _zeros(leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Callable[[], tuple[Array, ...]]:
    """Makes them; kept, so that a model that is loaded again is not compiled again."""
    return jax.jit(
        lambda: tuple(jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves),
        out_shardings=tuple(leaf.sharding for leaf in leaves),
    )


@lru_cache(maxsize=1024)
def _stored(leaf: Leaf, mesh: Mesh, fan_in: int, kind: str | None) -> Any:
    """How a leaf is stored, and its sharding (quantised weights: like their codes)."""
    one = _without_stack(leaf)
    shapes: Any = jax.ShapeDtypeStruct(one.shape, leaf.dtype)
    if kind:
        shapes = jax.eval_shape(lambda x: quantise(x, fan_in, kind), shapes)
    before = leaf.shape[: len(leaf.shape) - len(one.shape)]

    def place(entry: jax.ShapeDtypeStruct, codes: bool = False) -> jax.ShapeDtypeStruct:
        # An axis that storage has folded (nf4 fan-in; the compiler may split it nevertheless)
        # or shortened is replicated, but for a width, whose pieces are put together anyway.
        outs, ins = one.axes[fan_in:], one.axes[:fan_in]
        folded = ins if ins == ("width",) and kind == "nf4" else ()
        names = folded + (None,) * (entry.ndim - len(outs) - len(folded)) + outs
        names = one.axes if entry.shape == one.shape else names
        names = (*outs, *one.axes[:fan_in]) if codes else names
        whole = Leaf(
            (*before, *entry.shape), entry.dtype, (*leaf.axes[: len(before)], *names), "zeros"
        )
        return jax.ShapeDtypeStruct(whole.shape, entry.dtype, sharding=sharding(whole, mesh))

    if kind == "float8":  # outputs first
        return replace(shapes, codes=place(shapes.codes, codes=True), scale=place(shapes.scale))
    return jax.tree.map(place, shapes)
