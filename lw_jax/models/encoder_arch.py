"""The architecture of a frozen sentence encoder: what the `config.json` of a BERT says.

BERT (Devlin et al. 2019) as in MiniLM and bge: learned positions, LayerNorm after each residual, an
MLP without a gate, every token seen by all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.arch_keys import ENCODERS, check_values, number, whole

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
"""Of the MLP: `gelu` is exact (erf), the next two are its tanh form."""

_ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
"""What may be named: heads beside the encoder are not read."""
_READ = frozenset(
    """model_type vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size
    hidden_act layer_norm_eps max_position_embeddings type_vocab_size initializer_range""".split()
)
_NO_EFFECT = frozenset(
    """hidden_dropout_prob attention_probs_dropout_prob classifier_dropout gradient_checkpointing
    tie_word_embeddings tokenizer_class bos_token_id eos_token_id cls_token_id sep_token_id
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type""".split()
)
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "directionality": ("bidi",),
    "hidden_act": ACTIVATIONS,
}


@dataclass(frozen=True)
class EncoderArch:
    """Sizes and switches of one encoder; hashable, a static argument of jitted functions.

    Attributes:
        family: the model_type.
        vocab_size: V.
        width: D.
        layers: L.
        heads: H.
        mlp_width: F.
        norm_eps: of the LayerNorms.
        activation: of the MLP, one of `ACTIVATIONS`.
        max_positions: tokens that it has positions for, [CLS] and [SEP] among them.
        types: rows of the token-type table, of which row 0 is read.
        cls_id: what stands before a text, as its tokenizer says; None until that is asked.
        sep_id: what stands after a text, likewise.
        init_std: deviation of freshly initialised matrices.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_eps: float
    activation: str
    max_positions: int
    types: int
    cls_id: int | None = None
    sep_id: int | None = None
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"{self.heads} attention heads do not divide the width {self.width}")

    @property
    def kv_heads(self) -> int:
        """Key/value heads: as many as there are heads."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @staticmethod
    def from_hf(config: Mapping[str, Any], where: str = "config.json") -> EncoderArch:
        """Reads a Hugging Face config of model_type `bert`; `where` names the file in the errors.

        Raises:
            UserError: a key that would change the maths, or a value that is not supported.
        """
        check_values(config, where, _ARCHITECTURES, _READ | _NO_EFFECT, _MUST_BE)
        return EncoderArch(
            family=str(config["model_type"]),
            vocab_size=whole(config, "vocab_size", where),
            width=whole(config, "hidden_size", where),
            layers=whole(config, "num_hidden_layers", where),
            heads=whole(config, "num_attention_heads", where),
            mlp_width=whole(config, "intermediate_size", where),
            norm_eps=number(config, "layer_norm_eps", where, 1e-12),
            activation=str(config.get("hidden_act") or "gelu"),
            max_positions=whole(config, "max_position_embeddings", where, 512),
            types=whole(config, "type_vocab_size", where, 2),
            init_std=number(config, "initializer_range", where, 0.02),
        )


AnyArch = Arch | EncoderArch
"""A frozen model: a decoder, which can be sender and receiver, or an encoder, a sender only."""


def arch_from_hf(
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    where: str = "config.json",
) -> AnyArch:
    """The decoder or encoder that a Hugging Face config describes.

    Raises:
        UserError: see `Arch.from_hf` and `EncoderArch.from_hf`.
    """
    if config.get("model_type") in ENCODERS:
        return EncoderArch.from_hf(config, where)
    return Arch.from_hf(config, generation_config, where)
