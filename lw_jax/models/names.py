"""Hugging Face's tensor names and layouts, beside this project's.

torch stores a projection as [out, in]; here it is [in..., out...] with the heads apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_jax.models.arch import Arch
from lw_jax.models.params import Leaf, abstract

_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_TOP = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
FAN_IN = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1, "head": 1}
"""Matrices, with the number of their leading (contracted) axes; the others keep their layout."""


class Part(NamedTuple):
    """One tensor of a checkpoint: its name there, the leaf it fills, and at which layer of it."""

    name: str
    leaf: str
    layer: int | None
    shape: tuple[int, ...]  # of this part, here

    @property
    def fan_in(self) -> int:
        """Leading axes that are contracted; 0 for vectors and the embedding table."""
        return FAN_IN.get(self.leaf, 0)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        if not self.fan_in:
            flat = self.leaf.endswith("_bias")
            return (int(np.prod(self.shape)),) if flat else self.shape
        ins, outs = self.shape[: self.fan_in], self.shape[self.fan_in :]
        return (int(np.prod(outs)), int(np.prod(ins)))

    def from_stored(self, tensor: NDArray) -> NDArray:
        """A view in this project's layout."""
        return (tensor.T if self.fan_in else tensor).reshape(self.shape)

    def to_stored(self, value: NDArray) -> NDArray:
        """A contiguous array in the checkpoint's layout."""
        if not self.fan_in:
            return np.ascontiguousarray(value.reshape(self.stored_shape))
        return np.ascontiguousarray(value.reshape(self.stored_shape[::-1]).T)


def parts(arch: Arch, layers: int | None = None, head: bool = True) -> Iterator[Part]:
    """The tensors that a checkpoint of this arch must hold, leaf by leaf, layer by layer."""
    tree = abstract(arch, layers=layers, head=head)
    for leaf, entry in tree.items():
        if isinstance(entry, Leaf):
            yield Part(_TOP[leaf], leaf, None, entry.shape)
    for leaf, entry in tree["layers"].items():
        for layer in range(entry.shape[0]):
            yield Part(f"model.layers.{layer}.{_LAYER[leaf]}", leaf, layer, entry.shape[1:])


def harmless(name: str, arch: Arch, layers: int | None, head: bool) -> bool:
    """Whether a tensor that is in the checkpoint and not asked for may be there."""
    if name.endswith("rotary_emb.inv_freq") or (arch.tied and name == _TOP["head"]):
        return True  # old files keep RoPE's table; some tied ones the head's copy
    if not head and name in (_TOP["final_norm"], _TOP["head"]):
        return True
    pieces = name.split(".")
    beyond = layers is not None and pieces[:2] == ["model", "layers"] and pieces[2].isdigit()
    return beyond and layers is not None and layers <= int(pieces[2]) < arch.layers
