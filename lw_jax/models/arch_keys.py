"""Which keys of a Hugging Face `config.json` this decoder understands, and what each may say.

A key that would change the maths and is not listed here is an error: it is better to refuse a model
than to compute it wrong without a word. The reference is transformers' reading of these families.
"""

from __future__ import annotations

import math
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
        kv_heads: transformers' default where the key is missing; None: the number of heads. (A key
            that is null means the number of heads in every family.)
        head_dim: transformers' default where the key is missing; None: width / heads.
        window: transformers' default where the key is missing; None: no window.
        max_positions: transformers' default where the key is missing.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    max_positions: int = 32768


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", max_positions=2048),
    "mistral": Family("MistralForCausalLM", kv_heads=8, window=4096, max_positions=131072),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, kv_heads=32, window=4096),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, kv_heads=32, head_dim=128, window=4096),
}

ENCODERS = ("bert",)
"""Families of sentence encoders; see `lw_jax.models.encoder_arch`."""

_READ = frozenset(
    """model_type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim intermediate_size rms_norm_eps rope_theta rope_scaling rope_parameters sliding_window
    use_sliding_window max_window_layers layer_types tie_word_embeddings max_position_embeddings
    original_max_position_embeddings bos_token_id eos_token_id initializer_range""".split()
)
_NO_EFFECT = frozenset(
    """architectures transformers_version torch_dtype dtype use_cache attention_dropout
    pretraining_tp name_or_path attn_implementation return_dict output_hidden_states
    output_attentions use_return_dict chunk_size_feed_forward is_encoder_decoder id2label label2id
    num_labels problem_type torchscript use_bfloat16 tf_legacy_loss return_dict_in_generate
    keys_to_ignore_at_inference ignore_keys_at_rope_validation
    base_model base_model_name parent_model model_name model_id model_version revision version
    author license library_name pipeline_tag tags language description created_at
    task_specific_params finetuning_task is_llama_config
    hidden_dropout hidden_dropout_prob attention_probs_dropout_prob classifier_dropout dropout
    attn_pdrop embd_pdrop resid_pdrop resid_dropout embedding_dropout ffn_dropout
    gradient_checkpointing output_router_logits label_smoothing z_loss loss_type learning_rate
    weight_decay warmup_steps train_batch_size num_train_epochs max_steps seed seq_length
    max_seq_len max_seq_length max_sequence_length
    use_flash_attn use_flash_attention use_flash_attention_2 flash_attention fused_mlp
    pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    eot_token_id bos_token eos_token pad_token unk_token additional_special_tokens tokenizer_class
    model_max_length padding_side truncation_side add_bos_token add_eos_token chat_template
    vocab_file prefix
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p epsilon_cutoff eta_cutoff
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores forced_bos_token_id forced_eos_token_id
    suppress_tokens begin_suppress_tokens remove_invalid_values exponential_decay_length_penalty
    """.split()
)
"""Bookkeeping of training, of tokenizers and of `generate`, which no family's maths depends on."""
_NO_EFFECT_BEGINS = ("_", "unsloth_", "mergekit", "axolotl", "wandb")
_NO_EFFECT_DECODER = frozenset("is_decoder add_cross_attention tie_encoder_decoder".split())
_ON = (True, 1)
_NEUTRAL = (1,)
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": _NEUTRAL,
    # What these families always do: false, which looks harmless, changes the maths.
    **dict.fromkeys(
        """is_causal causal causal_attention causal_mask use_causal_mask use_rope use_rotary
        use_rotary_embeddings rotary use_rms_norm use_rmsnorm pre_norm prenorm norm_first
        normalize_before do_layer_norm_before final_norm use_final_norm add_final_norm
        scale_attn_weights scale_attention_weights gated_mlp use_glu use_gated_mlp""".split(),
        _ON,
    ),
    # Factors that these families do not have: only 1 leaves the maths as it is.
    **dict.fromkeys(
        """logit_scale logits_scaling logits_scale output_multiplier residual_multiplier
        embedding_multiplier embedding_scale attention_multiplier attention_scale scale_emb
        rotary_pct rope_pct""".split(),
        _NEUTRAL,
    ),
}
_NULL_MEANS_OFF = frozenset(
    "is_causal causal causal_attention causal_mask use_causal_mask hidden_act".split()
)
"""Keys of `must_be` where null is not the same as a missing key."""
_SAME_IN_FAMILY: dict[str, dict[str, tuple[Any, ...]]] = {
    "qwen2": {"attention_bias": (True, False), "qkv_bias": _ON, "use_qkv_bias": _ON},
    "qwen3": {"qk_norm": _ON, "use_qk_norm": _ON},
}
"""What a family always does or, as qwen2 with `attention_bias`, does not read."""

MOST: dict[str, int] = {
    "num_hidden_layers": 4096,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "type_vocab_size": 2**16,
}
"""Far above any model: a larger size is a damaged file, and nothing is allocated for it. Below it,
the headers of the weight files decide."""
_LARGEST = 2**53


def check_keys(config: Mapping[str, Any], where: str) -> str:
    """The family that a config names, after checking that every key in it is harmless.

    An unknown key is accepted if its value is null, false or empty: then it switches nothing on.
    Keys that say with false that something usual is left out are listed in `_MUST_BE`.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{where}: model_type {shown(family)} is not supported; known: "
            f"{', '.join(FAMILIES)}, and {', '.join(ENCODERS)} for a sentence encoder"
        )
    must_be = _MUST_BE | _SAME_IN_FAMILY.get(family, {})
    known = _READ | _NO_EFFECT_DECODER
    check_values(config, where, (FAMILIES[family].architecture,), known, must_be)
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
    family, stated = config["model_type"], config.get("architectures")
    if stated is not None and not (
        isinstance(stated, list) and all(isinstance(name, str) for name in stated)
    ):
        raise UserError(f"{where}: architectures must be a list of names, found {shown(stated)}")
    if stated and not set(architectures) & set(stated):
        raise UserError(
            f"{where}: architecture {shown(stated[0])} is no {' or '.join(architectures)}, "
            f"{'the only one' if len(architectures) == 1 else 'the only ones'} read for {family}"
        )
    for key, allowed in must_be.items():
        value = config.get(key)
        if value is None and (key not in config or key not in _NULL_MEANS_OFF):
            continue
        if not isinstance(value, (bool, int, float, str)) or value not in allowed:
            supported = ", ".join(dict.fromkeys(repr(value) for value in allowed))
            raise UserError(f"{where}: {key} is {shown(value)}; supported: {supported}")
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised already; use the full-precision one")
    unknown = sorted(
        named(key)
        for key, value in config.items()
        if value
        and not key.startswith(_NO_EFFECT_BEGINS)
        and key not in known | _NO_EFFECT
        and key not in must_be
        and not (key == "auto_map" and _of_no_model(value))
    )
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"{where}: {', '.join(unknown[:5])}{more} would change the model in a way that is not "
            f"supported for {family}"
        )


def _of_no_model(auto_map: Any) -> bool:
    """Whether an `auto_map` names code of tokenizers or configs only, none of a model."""
    return isinstance(auto_map, Mapping) and not any("Model" in name for name in auto_map)


def shown(value: Any) -> str:
    """A value of a JSON file for an error message: one short line, whatever it holds."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def named(text: str) -> str:
    """A name from a file for an error message, without quotes."""
    return text if text.isprintable() and len(text) <= 80 else shown(text)


def number(
    config: Mapping[str, Any],
    key: str,
    where: str,
    default: float | None = None,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """A finite numeric field; a missing one takes the default, if there is one.

    Args:
        config: contents of config.json.
        key: the field.
        where: name of the file, for error messages.
        default: value of a missing field; None: it must be given.
        least: the smallest value that is right.
        most: the largest.

    Raises:
        UserError: the field is missing and has no default, or is not a finite number in between.
    """
    if key not in config and default is not None:
        return default
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: {key} must be a number, found {shown(value)}")
    if not -_LARGEST <= value <= _LARGEST and not (
        isinstance(value, float) and math.isfinite(value)
    ):
        raise UserError(f"{where}: {key} must be a finite number, found {shown(value)}")
    if value < least:
        raise UserError(f"{where}: {key} must be at least {least:g}, found {shown(value)}")
    if value > most:
        raise UserError(f"{where}: {key} must be at most {most:g}, found {shown(value)}")
    return float(value)


def whole(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A field that is a positive whole number; a missing one takes the default, if there is one.

    Args:
        config: contents of config.json.
        key: the field.
        where: name of the file, for error messages.
        default: value of a missing field; None: it must be given.

    Raises:
        UserError: the field is missing and has no default, or is not a positive whole number, or
            is larger than any model's.
    """
    value = number(config, key, where, default)
    if value != int(value) or value < 1:
        raise UserError(
            f"{where}: {key} must be a positive whole number, found {shown(config[key])}"
        )
    most = MOST.get(key, _LARGEST)
    if value > most:
        raise UserError(f"{where}: {key} is {shown(config[key])}; no model has more than {most}")
    return int(value)


def switch(config: Mapping[str, Any], key: str, where: str) -> bool:
    """A field that is true or false; a missing one, or null, is false.

    Raises:
        UserError: it is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where}: {key} must be true or false, found {shown(value)}")
    return bool(value)


def token_ids(config: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    """A field that holds a token's id, several, or null.

    Raises:
        UserError: it holds something else.
    """
    value = config.get(key)
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 2**31 for i in found):
        raise UserError(f"{where}: {key} must be a token's id or several, found {shown(value)}")
    return tuple(found)
