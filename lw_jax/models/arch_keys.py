"""Which keys of a Hugging Face `config.json` this decoder understands, and what each may say.

A key that would change the maths and is not listed here is an error: it is better to refuse a model
than to compute it wrong without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from lw_jax.errors import UserError


@dataclass(frozen=True)
class Family:
    """What a model_type implies without saying so in its config.

    Attributes:
        architecture: the class in transformers.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normed.
        kv_heads: transformers' default where the key is missing; None: the number of heads.
        head_dim: transformers' default where the key is missing; None: width / heads.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", kv_heads=8),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, kv_heads=32),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, kv_heads=32, head_dim=128),
}

ENCODERS = ("bert",)
"""Families of sentence encoders; see `lw_jax.models.encoder_arch`."""

_READ = frozenset(
    """model_type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim intermediate_size rms_norm_eps rope_theta rope_scaling rope_parameters sliding_window
    use_sliding_window max_window_layers layer_types tie_word_embeddings max_position_embeddings
    bos_token_id eos_token_id initializer_range""".split()
)
_NO_EFFECT = frozenset(
    """architectures transformers_version torch_dtype dtype use_cache pad_token_id attention_dropout
    pretraining_tp name_or_path attn_implementation return_dict output_hidden_states
    output_attentions use_return_dict chunk_size_feed_forward is_encoder_decoder id2label label2id
    problem_type model_max_length unsloth_version""".split()
)
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1, 1.0),
}


def check_keys(config: Mapping[str, Any], where: str) -> str:
    """The family that a config names, after checking that every key in it is harmless.

    An unknown key is accepted if its value is null, false or empty: then it switches nothing on.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{where}: model_type {family!r} is not supported; known: "
            f"{', '.join(FAMILIES)}, and {', '.join(ENCODERS)} for a sentence encoder"
        )
    check_values(config, where, (FAMILIES[family].architecture,), _READ, _MUST_BE)
    return family


def check_values(
    config: Mapping[str, Any],
    where: str,
    architectures: Sequence[str],
    known: AbstractSet[str],
    must_be: Mapping[str, Sequence[Any]],
) -> None:
    """Refuses a config that would be computed wrong.

    Args:
        config: contents of config.json.
        where: name of the file, for error messages.
        architectures: the architectures that can be read; a config need not name one.
        known: keys that are read, or have no effect on this model. Keys without effect on any model
            need not be listed.
        must_be: keys with a few accepted values.

    Raises:
        UserError: another architecture or value, quantised weights, or unknown keys.
    """
    family, named = config["model_type"], config.get("architectures")
    if named and not set(architectures) & set(named):
        raise UserError(
            f"{where}: architecture {named[0]!r} is no {' or '.join(architectures)}, "
            f"{'the only one' if len(architectures) == 1 else 'the only ones'} read for {family}"
        )
    for key, allowed in must_be.items():
        if config.get(key) is not None and config[key] not in allowed:
            supported = ", ".join(dict.fromkeys(repr(value) for value in allowed))
            raise UserError(f"{where}: {key} is {config[key]!r}; supported: {supported}")
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised already; use the full-precision one")
    unknown = sorted(
        key
        for key, value in config.items()
        if value
        and not key.startswith("_")
        and key not in known | _NO_EFFECT
        and key not in must_be
    )
    if unknown:
        raise UserError(
            f"{where}: {', '.join(unknown)} would change the model in a way that is not "
            f"supported for {family}"
        )


def number(config: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A numeric field; a missing one takes the default, if there is one.

    Raises:
        UserError: the field is missing and has no default, or is not a number.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: {key} must be a number, found {value!r}")
    return float(value)


def whole(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A field that is a positive whole number; a missing one takes the default, if there is one.

    Raises:
        UserError: the field is missing and has no default, or is not a positive whole number.
    """
    value = number(config, key, where, default)
    if value != int(value) or value < 1:
        raise UserError(f"{where}: {key} must be a positive whole number, found {config[key]!r}")
    return int(value)
