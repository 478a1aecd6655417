"""Frozen weights in pieces over the mesh axis `fsdp`, put together where they are used.

No device holds a whole model. What computes with a weight asks `gathered` for it, layer by layer,
and the whole weight is let go of afterwards; a backward pass asks again, unless `remat` is none.
Models on a mesh without that axis have no `Split` in them, and `gathered` does nothing.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from lw_jax.types import Array, PyTree


@struct.dataclass
class Split:
    """A weight of which every device along `fsdp` holds a piece.

    Attributes:
        pieces: the weight [...], or a stack of them [L, ...].
        whole: how one of them lies where it is used; static.
    """

    pieces: Array
    whole: NamedSharding = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the whole."""
        return self.pieces.shape

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        return self.pieces.dtype


def in_pieces(params: PyTree) -> PyTree:
    """Parameters of a frozen model (arrays, or shapes with shardings) with every weight marked that
    lies in pieces."""

    def of(path: Any, leaf: Any) -> Any:
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        if "fsdp" not in spec:
            return leaf
        stacked = str(getattr(path[0], "key", "")) == "layers" and hasattr(path[1], "key")
        own = [None if name == "fsdp" else name for name in spec][int(stacked) :]
        return Split(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec(*own)))

    return jax.tree_util.tree_map_with_path(of, params)


def as_laid_out(params: PyTree) -> PyTree:
    """Parameters without the marks: what `in_pieces` was given."""
    return jax.tree.map(lambda x: x.pieces if _split(x) else x, params, is_leaf=_split)


def is_split(tree: PyTree) -> bool:
    """Whether a weight among them lies in pieces."""
    return any(map(_split, jax.tree.leaves(tree, is_leaf=_split)))


def gathered(weights: PyTree, since: Array | None = None) -> PyTree:
    """The same weights, each whole.

    Args:
        weights: of one layer, or a matrix.
        since: an array of the pass that uses them. Passes with other arrays put the weights
            together for themselves; those with the same, or without one, may share them, which then
            stay until the last.
    """

    def of(x: Any) -> Any:
        if not _split(x):
            return x
        pieces = x.pieces
        if since is not None:
            pieces, _ = jax.lax.optimization_barrier((pieces, jax.lax.stop_gradient(since)))
        return jax.lax.with_sharding_constraint(jax.lax.stop_gradient(pieces), x.whole)

    return jax.tree.map(of, weights, is_leaf=_split)


def embedding_table(params: PyTree) -> Array:
    """[V, D] the input embeddings of a model."""
    found: Array = gathered(params["embed"])
    return found


def _split(x: Any) -> bool:
    return isinstance(x, Split)
