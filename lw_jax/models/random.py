"""A model of a real one's shape whose weights are drawn at random: the control for what is learned.

Its config and tokenizer are the real model's; no weight file is read. What such a sender's bridge
reaches is reached by architecture, tokenizer and bridge alone.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import DictKey
from numpy.typing import NDArray

from lw_jax.mesh import put, ways
from lw_jax.models.apart import apart as set_apart
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.load import abstract_params
from lw_jax.models.params import Leaf, abstract, sharding
from lw_jax.types import Array, PyTree


def random_params(
    arch: AnyArch,
    mesh: Mesh,
    seed: int,
    dtype: Any,
    layers: int | None = None,
    head: bool = True,
    apart: bool = False,
) -> PyTree:
    """Random parameters on the mesh, as transformers initialises such a model: matrices normal with
    the family's standard deviation, norms 1, biases 0.

    A leaf's draw depends on its name and the seed alone, and a layer's on its place: a model that
    is cut off has the first layers of the whole one.

    Args:
        arch: the model.
        mesh: the device mesh.
        seed: of the draws.
        dtype: dtype of the weights on the mesh.
        layers: number of layers, from the first on; None: all.
        head: whether the final norm and the output head are among them.
        apart: whether the layers are apart, or stacked.
    """

    def drawn(path: tuple[DictKey, ...], leaf: Leaf) -> Array:
        name = zlib.crc32("/".join(str(key.key) for key in path).encode())
        return put(_draw(leaf, [seed, name]), sharding(leaf, mesh))

    stacked = jax.tree_util.tree_map_with_path(drawn, abstract(arch, dtype, layers, head))
    if not apart:
        return stacked
    like = abstract_params(arch, mesh, dtype=dtype, layers=layers, head=head, apart=True)
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    whole = ways(mesh, "heads") == 1
    return jax.jit(partial(set_apart, heads_joined=whole), out_shardings=places)(stacked)


def _draw(leaf: Leaf, seeds: list[int]) -> NDArray[Any]:
    """A leaf on the host, layer by layer: numpy's draws, so that nothing is compiled."""
    if isinstance(leaf.init, str):
        return np.full(leaf.shape, float(leaf.init == "ones"), leaf.dtype)
    found = np.empty(leaf.shape, leaf.dtype)
    stacked = leaf.axes[0] == "layers"
    for place, part in enumerate(found if stacked else found[None]):
        rng = np.random.default_rng([*seeds, place])
        part[...] = rng.standard_normal(part.shape, np.float32) * np.float32(leaf.init)
    return found


def random_print(arch: AnyArch, seed: int) -> str:
    """32 hex digits of architecture and seed, where other models have those of their files."""
    said = json.dumps([asdict(arch), f"random weights {seed}"], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]
