"""The architecture of a frozen sentence encoder: what the `config.json` of a BERT says.

BERT (Devlin et al. 2019) as in MiniLM and bge: learned positions, a LayerNorm after each residual,
an MLP without a gate, and every token sees all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.arch_keys import ENCODERS, check_values, number, whole

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
"""Activations of the MLP: `gelu` is exact (erf), the next two are its tanh form."""

_ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
"""Architectures that a config may name; heads on top of the encoder are not read."""
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
        vocab_size: V, entries of the vocabulary.
        width: D, width of the states.
        layers: L, number of layers.
        heads: H, attention heads.
        mlp_width: F, hidden width of the MLP.
        norm_eps: epsilon of the LayerNorms.
        activation: activation of the MLP, one of `ACTIVATIONS`.
        max_positions: longest text in tokens, [CLS] and [SEP] included.
        types: rows of the token-type table; only row 0 is read.
        cls_id: token before a text, taken from the tokenizer; None: not yet read.
        sep_id: token after a text, taken from the tokenizer; None: not yet read.
        init_std: standard deviation of freshly initialised matrices.
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
        """Number of key/value heads, which is that of the query heads."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @staticmethod
    def from_hf(config: Mapping[str, Any], where: str = "config.json") -> EncoderArch:
        """Reads a Hugging Face config of model_type `bert`.

        Args:
            config: contents of config.json.
            where: name of the file, for error messages.

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
            norm_eps=number(config, "layer_norm_eps", where, 1e-12, least=0.0, most=1.0),
            activation=str(config.get("hidden_act") or "gelu"),
            max_positions=whole(config, "max_position_embeddings", where, 512),
            types=whole(config, "type_vocab_size", where, 2),
            init_std=number(config, "initializer_range", where, 0.02, least=0.0),
        )


AnyArch = Arch | EncoderArch
"""A frozen model: a decoder, which can be sender and receiver, or an encoder, only a sender."""


def arch_from_hf(
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    where: str = "config.json",
) -> AnyArch:
    """The decoder or encoder that a Hugging Face config describes.

    Args:
        config: contents of config.json.
        generation_config: contents of generation_config.json, if there is one.
        where: name of the file, for error messages.

    Raises:
        UserError: see `Arch.from_hf` and `EncoderArch.from_hf`.
    """
    kind = config.get("model_type")
    try:
        if isinstance(kind, str) and kind in ENCODERS:
            return EncoderArch.from_hf(config, where)
        return Arch.from_hf(config, generation_config, where)
    except UserError as error:
        files = where, where.replace("config.json", "generation_config.json")
        if str(error).startswith(files):
            raise
        raise UserError(f"{where}: {error}") from error  # sizes that do not go together
