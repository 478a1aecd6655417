"""Tensor names and layouts of Hugging Face, and of this project.

torch stores a projection as [out, in]; here it is [in..., out...] with the heads as an axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_jax.models.encoder_arch import AnyArch, EncoderArch
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
HEAD, EMBED = _TOP["head"], _TOP["embed"]
_ENCODER_LAYER = {
    "q": "attention.self.query.weight",
    "k": "attention.self.key.weight",
    "v": "attention.self.value.weight",
    "o": "attention.output.dense.weight",
    "q_bias": "attention.self.query.bias",
    "k_bias": "attention.self.key.bias",
    "v_bias": "attention.self.value.bias",
    "o_bias": "attention.output.dense.bias",
    "attn_norm": "attention.output.LayerNorm.weight",
    "attn_norm_bias": "attention.output.LayerNorm.bias",
    "up": "intermediate.dense.weight",
    "down": "output.dense.weight",
    "up_bias": "intermediate.dense.bias",
    "down_bias": "output.dense.bias",
    "mlp_norm": "output.LayerNorm.weight",
    "mlp_norm_bias": "output.LayerNorm.bias",
}
_ENCODER_TOP = {
    "embed": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "type": "embeddings.token_type_embeddings.weight",
    "embed_norm": "embeddings.LayerNorm.weight",
    "embed_norm_bias": "embeddings.LayerNorm.bias",
}
_STACK = "model.layers"
_ENCODER_STACK = "encoder.layer"
_PREFIX = "bert."
"""Comes before every name of an encoder that was saved with a head on top."""
FAN_IN = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1, "head": 1} | {
    "qkv": 1,
    "gate_up": 1,
}
"""Matrices, with the number of their leading (contracted) axes; the others keep their layout. The
last two are what layers apart hold joined; no checkpoint does."""


class Part(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        name: its name in the checkpoint.
        leaf: the leaf that it fills.
        layer: the layer of that leaf; None: the leaf is not stacked.
        shape: the shape in this project's layout.
    """

    name: str
    leaf: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def fan_in(self) -> int:
        """Number of leading axes that are contracted; 0 for vectors and the embedding table."""
        return FAN_IN.get(self.leaf, 0)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        if not self.fan_in:
            flat = self.leaf.endswith("_bias")
            return (int(np.prod(self.shape)),) if flat else self.shape
        ins, outs = self.shape[: self.fan_in], self.shape[self.fan_in :]
        return (int(np.prod(outs)), int(np.prod(ins)))

    def to_stored(self, value: NDArray) -> NDArray:
        """A contiguous array in the checkpoint's layout."""
        if not self.fan_in:
            return np.ascontiguousarray(value.reshape(self.stored_shape))
        return np.ascontiguousarray(value.reshape(self.stored_shape[::-1]).T)


def parts(
    arch: AnyArch,
    layers: int | None = None,
    head: bool = True,
    present: Collection[str] = (),
) -> Iterator[Part]:
    """The tensors that a checkpoint of this arch must hold, leaf by leaf, layer by layer.

    Args:
        arch: the model.
        layers: number of layers, from the first on; None: all.
        head: whether the final norm and the output head are among them.
        present: names in the checkpoint, where it may spell them in several ways.
    """
    tree = abstract(arch, layers=layers, head=head)
    encoder = isinstance(arch, EncoderArch)
    top, each, stack = (
        (_ENCODER_TOP, _ENCODER_LAYER, _ENCODER_STACK) if encoder else (_TOP, _LAYER, _STACK)
    )

    def spelled(name: str) -> str:
        return _spelled(name, present) if encoder else name

    for leaf, entry in tree.items():
        if isinstance(entry, Leaf):
            yield Part(spelled(top[leaf]), leaf, None, entry.shape)
    for leaf, entry in tree["layers"].items():
        for layer in range(entry.shape[0]):
            name = spelled(f"{stack}.{layer}.{each[leaf]}")
            yield Part(name, leaf, layer, entry.shape[1:])


def _spelled(name: str, present: Collection[str]) -> str:
    """An encoder's name as the checkpoint spells it: with or without prefix, and in old files gamma
    and beta for LayerNorm's gain and bias.
    """
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    ways = (name, _PREFIX + name, old, _PREFIX + old)
    return next((way for way in ways if way in present), name)


def harmless(name: str, arch: AnyArch, layers: int | None, head: bool) -> bool:
    """Whether a checkpoint may hold this tensor although it is not asked for.

    Args:
        name: name of the tensor.
        arch: the model.
        layers: number of layers that are loaded, from the first on; None: all.
        head: whether the output head is loaded.
    """
    if isinstance(arch, EncoderArch):
        name = name.removeprefix(_PREFIX)
        # Heads on top of the encoder, and the position numbers 0, 1, ... that old files hold.
        if name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids":
            return True
        return _beyond(name, _ENCODER_STACK, arch.layers, layers)
    if name.endswith("rotary_emb.inv_freq") or (arch.tied and name == _TOP["head"]):
        return True  # old files keep RoPE's table; some tied ones the head's copy
    if not head and name in (_TOP["final_norm"], _TOP["head"]):
        return True
    return _beyond(name, _STACK, arch.layers, layers)


def _beyond(name: str, stack: str, count: int, layers: int | None) -> bool:
    """Whether a tensor belongs to a layer that is left out."""
    first, _, rest = name.removeprefix(f"{stack}.").partition(".")
    own = name.startswith(f"{stack}.") and bool(rest) and first.isdigit()
    return own and layers is not None and layers <= int(first) < count
