"""The parameters of a frozen model: one description, from which everything else follows.

`abstract(arch)` gives each leaf's shape, dtype, logical axes and initialiser; `init`, `shardings`
and the checkpoint loader all read it, so they cannot disagree.

Letters: V vocabulary, D width, L layers, H heads, K key/value heads, h head width, F MLP width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from lw_jax.mesh import over, ways
from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.types import Array, PyTree


@dataclass(frozen=True)
class Leaf:
    """One parameter.

    Attributes:
        shape: sizes of its axes.
        dtype: dtype in which it is stored.
        axes: a logical name for each axis; None: never split.
        init: how it starts: the deviation of a normal draw, or "ones" / "zeros".
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    init: float | str


def abstract(
    arch: AnyArch, dtype: Any = jnp.float32, layers: int | None = None, head: bool = True
) -> PyTree:
    """The tree of `Leaf`s of a decoder or an encoder.

    Args:
        arch: the model.
        dtype: dtype of every leaf.
        layers: number of layers that are stacked; None: all. A sender needs only those up to its
            highest tap, and none for its embeddings.
        head: False leaves out the final norm and the output head, which no tap needs (an encoder
            has neither).
    """
    n = arch.layers if layers is None else layers
    size = {
        "layers": n,
        "width": arch.width,
        "heads": arch.heads,
        "kv_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "mlp": arch.mlp_width,
        "vocab": arch.vocab_size,
        "positions": arch.max_positions,
    }

    def leaf(init: float | str, *axes: str | None) -> Leaf:
        return Leaf(tuple(size[str(axis)] for axis in axes), dtype, axes, init)

    if isinstance(arch, EncoderArch):
        size["types"] = arch.types
        return _encoder(arch.init_std, n, leaf)
    return _decoder(arch, n, head, leaf)


def _decoder(arch: Arch, n: int, head: bool, leaf: Callable[..., Leaf]) -> PyTree:
    std = arch.init_std
    stack: dict[str, Leaf] = {
        "attn_norm": leaf("ones", "layers", "width"),
        "q": leaf(std, "layers", "width", "heads", "head_dim"),
        "k": leaf(std, "layers", "width", "kv_heads", "head_dim"),
        "v": leaf(std, "layers", "width", "kv_heads", "head_dim"),
        "o": leaf(std, "layers", "heads", "head_dim", "width"),
        "mlp_norm": leaf("ones", "layers", "width"),
        "gate": leaf(std, "layers", "width", "mlp"),
        "up": leaf(std, "layers", "width", "mlp"),
        "down": leaf(std, "layers", "mlp", "width"),
    }
    if arch.qkv_bias:
        stack["q_bias"] = leaf("zeros", "layers", "heads", "head_dim")
        stack["k_bias"] = leaf("zeros", "layers", "kv_heads", "head_dim")
        stack["v_bias"] = leaf("zeros", "layers", "kv_heads", "head_dim")
    if arch.qk_norm:
        stack["q_norm"] = leaf("ones", "layers", "head_dim")
        stack["k_norm"] = leaf("ones", "layers", "head_dim")
    tree: dict[str, Any] = {"embed": leaf(std, "vocab", "width"), "layers": stack if n else {}}
    if head:
        tree["final_norm"] = leaf("ones", "width")
        if not arch.tied:
            tree["head"] = leaf(std, "width", "vocab")
    return tree


def _encoder(std: float, n: int, leaf: Callable[..., Leaf]) -> PyTree:
    stack: dict[str, Leaf] = {}
    for name in ("q", "k", "v"):
        stack[name] = leaf(std, "layers", "width", "heads", "head_dim")
        stack[f"{name}_bias"] = leaf("zeros", "layers", "heads", "head_dim")
    stack |= {
        "o": leaf(std, "layers", "heads", "head_dim", "width"),
        "o_bias": leaf("zeros", "layers", "width"),
        "attn_norm": leaf("ones", "layers", "width"),
        "attn_norm_bias": leaf("zeros", "layers", "width"),
        "up": leaf(std, "layers", "width", "mlp"),
        "up_bias": leaf("zeros", "layers", "mlp"),
        "down": leaf(std, "layers", "mlp", "width"),
        "down_bias": leaf("zeros", "layers", "width"),
        "mlp_norm": leaf("ones", "layers", "width"),
        "mlp_norm_bias": leaf("zeros", "layers", "width"),
    }
    return {
        "embed": leaf(std, "vocab", "width"),
        "position": leaf(std, "positions", "width"),
        "type": leaf(std, "types", "width"),
        "embed_norm": leaf("ones", "width"),
        "embed_norm_bias": leaf("zeros", "width"),
        "layers": stack if n else {},
    }


def depth(params: PyTree) -> int:
    """Number of layers in a tree of parameters, stacked or apart."""
    layers = params["layers"]
    if isinstance(layers, tuple):
        return len(layers)
    return int(layers["attn_norm"].shape[0]) if layers else 0


def shapes(leaves: PyTree) -> PyTree:
    """The same tree as `jax.ShapeDtypeStruct`s, for `jax.eval_shape` and `lower`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), leaves)


def init(arch: AnyArch, rng: Array, dtype: Any = jnp.float32) -> PyTree:
    """Fresh parameters; a leaf's draw depends on its own name and the seed alone."""

    def draw(path: tuple[DictKey, ...], leaf: Leaf) -> Array:
        if leaf.init == "ones":
            return jnp.ones(leaf.shape, leaf.dtype)
        if leaf.init == "zeros":
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = "/".join(str(key.key) for key in path)
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        return jax.random.normal(key, leaf.shape, leaf.dtype) * jnp.asarray(leaf.init, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(arch, dtype))


def sharding(leaf: Leaf, mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter, as `lw_jax.mesh.RULES` says of its axes.

    An axis that the mesh does not divide evenly is whole, and so is the width of a vector.
    """
    matrix = len({axis for axis in leaf.axes if axis not in (None, "layers")}) > 1
    spec = [
        over(mesh, axis)
        if axis is not None and (axis != "width" or matrix) and size % ways(mesh, axis) == 0
        else None
        for axis, size in zip(leaf.axes, leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*spec) if any(spec) else PartitionSpec())
