"""Layers apart: each layer's weights are arrays of their own, and what reads the same is joined.

A scan over stacked layers copies each layer out of the stack before it is used. Apart, the products
read the weights where they are. Then q, k and v are one matrix "qkv" [D, H + 2 K, h], of which they
are ranges of heads in this order, and gate and up one "gate_up" [D, 2, F].

Letters: D width, H heads, K key/value heads, h head width, F MLP width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.models.arch import Arch
from lw_jax.models.params import Leaf, depth
from lw_jax.models.quant import QuantArray, take_layer
from lw_jax.models.split import gathered
from lw_jax.types import Array, PyTree

JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Joined matrices and their pieces in order."""


def chosen(unroll: str, mesh: Mesh) -> bool:
    """Whether a decoder's layers lie apart on a mesh.

    `auto` is apart on accelerators. On CPUs it is a scan: there it gains little, and what was
    computed stays the same to the last bit.

    Args:
        unroll: `auto`, `always` or `never`.
        mesh: the devices.
    """
    return unroll == "always" or (unroll == "auto" and mesh.devices.flat[0].platform != "cpu")


def is_apart(params: PyTree) -> bool:
    """Whether a tree of parameters holds its layers apart."""
    return isinstance(params["layers"], tuple)


def leaves_apart(stack: dict[str, Leaf], layers: int, heads_joined: bool) -> tuple[Any, ...]:
    """The leaves of each layer, from those of the stack.

    Args:
        stack: leaves [L, ...] by name.
        layers: L.
        heads_joined: whether q, k and v are one matrix; not where heads are split over devices,
            each of which needs its own heads of all three.
    """
    one = {n: Leaf(x.shape[1:], x.dtype, x.axes[1:], x.init) for n, x in stack.items()}
    joined: dict[str, Leaf] = {}
    if heads_joined:
        q, k, v = (one[name] for name in JOINED["qkv"])
        heads = q.shape[1] + k.shape[1] + v.shape[1]
        joined["qkv"] = replace(
            q, shape=(q.shape[0], heads, q.shape[2]), axes=(q.axes[0], None, q.axes[2])
        )
    gate = one["gate"]
    joined["gate_up"] = replace(
        gate, shape=(gate.shape[0], 2, gate.shape[1]), axes=(gate.axes[0], None, gate.axes[1])
    )
    gone = {piece for name in joined for piece in JOINED[name]}
    return ({n: x for n, x in one.items() if n not in gone} | joined,) * layers


def join(name: str, pieces: Sequence[Array], axis: int = 1) -> Array:
    """One matrix of its pieces: [D, N, h] along the heads, or [D, F] side by side."""
    return jnp.stack(pieces, axis) if name == "gate_up" else jnp.concatenate(pieces, axis)


def apart(params: PyTree, heads_joined: bool = True) -> PyTree:
    """Parameters with their layers apart, from stacked ones, plain or quantised; a copy.

    Args:
        params: of a decoder, stacked.
        heads_joined: see `leaves_apart`.
    """

    def of(w: dict[str, Any]) -> dict[str, Any]:
        for name, pieces in JOINED.items():
            if name == "gate_up" or heads_joined:
                parts = [w.pop(piece) for piece in pieces]
                if isinstance(parts[0], QuantArray):
                    outputs_first = parts[0].kind == "float8"
                    codes = join(name, [part.codes for part in parts], 0 if outputs_first else 1)
                    scale = join(name, [part.scale for part in parts])
                    w[name] = replace(parts[0], codes=codes, scale=scale, fan_out=2)
                else:
                    w[name] = join(name, parts)
        return w

    layers = tuple(of(take_layer(params["layers"], i)) for i in range(depth(params)))
    return {**params, "layers": layers}


def layer_of(params: PyTree, layer: int | Array) -> dict[str, Any]:
    """The weights of one layer, each whole, in either form; of layers apart, `layer` is an int."""
    layers = params["layers"]
    found: dict[str, Any] = layers[layer] if is_apart(params) else take_layer(layers, layer)
    return dict(gathered(found))


def piece_of(arch: Arch, params: PyTree, leaf: str, layer: int) -> Array:
    """One plain weight of a layer by its own name, in either form.

    Args:
        arch: the decoder.
        params: its parameters; not quantised.
        leaf: name of the weight in the stack: "q", "gate", ...
        layer: index of the layer.
    """
    if not is_apart(params):
        return params["layers"][leaf][layer]
    w = params["layers"][layer]
    if leaf in w:
        return w[leaf]
    if leaf in JOINED["gate_up"]:
        return w["gate_up"][:, JOINED["gate_up"].index(leaf)]
    edges = [0, *accumulate((arch.heads, arch.kv_heads, arch.kv_heads))]
    first, last = list(pairwise(edges))[JOINED["qkv"].index(leaf)]
    return w["qkv"][:, first:last]
