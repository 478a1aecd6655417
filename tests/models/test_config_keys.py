"""config.json as transformers reads it: missing keys, null, what is off, bookkeeping."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import open_checkpoint, read_arch
from tests.models import parity

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def hub(family: str = "llama", **changes: Any) -> dict[str, Any]:
    config = json.loads((parity.GOLDEN / family / "hub_config.json").read_text())
    return config | changes


def reference(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a config, in the words of `Arch`."""
    from transformers import CONFIG_MAPPING

    read = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    width = read.hidden_size // read.num_attention_heads
    window = getattr(read, "sliding_window", None)
    kinds = getattr(read, "layer_types", None)
    if read.model_type == "llama" or (
        read.model_type.startswith("qwen") and set(kinds) == {"full_attention"}
    ):
        window = None
    rope = read.rope_parameters
    return {
        "vocab_size": read.vocab_size,
        "width": read.hidden_size,
        "layers": read.num_hidden_layers,
        "heads": read.num_attention_heads,
        "kv_heads": read.num_key_value_heads,
        "head_dim": getattr(read, "head_dim", None) or width,
        "mlp_width": read.intermediate_size,
        "norm_eps": read.rms_norm_eps,
        "window": window,
        "tied": read.tie_word_embeddings,
        "max_positions": read.max_position_embeddings,
        "theta": rope["rope_theta"],
        "scaled": rope["rope_type"],
        "original": rope.get("original_max_position_embeddings"),
    }


def ours(config: dict[str, Any]) -> dict[str, Any]:
    arch = Arch.from_hf(config)
    scaling = arch.rope.scaling
    own = {
        "theta": arch.rope.theta,
        "scaled": "default" if scaling is None else "llama3",
        "original": None if scaling is None else scaling.original_max_positions,
    }
    return own | {key: getattr(arch, key) for key in reference(config) if key not in own}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_is_transformers_default(family: str) -> None:
    """Each key in turn; sizes have no default here, since the weights decide them."""
    config = hub(family)
    for key in ("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers"):
        config.setdefault(key, {"num_key_value_heads": 2, "head_dim": 8}.get(key))
    config = {k: v for k, v in config.items() if v is not None or k == "sliding_window"}
    assert ours(config) == reference(config)
    refused: dict[str, str] = {}
    for key in config.keys() - {"model_type"}:
        less = {k: v for k, v in config.items() if k != key}
        # transformers' own defaults must divide: 32 key/value heads need 32 heads
        if key == "num_key_value_heads" and family != "llama":
            less["num_attention_heads"] = 32
        try:
            found = ours(less)
        except UserError as error:
            refused[key] = str(error)
            continue
        assert found == reference(less), key
    assert all(key in line for key, line in refused.items())
    assert refused.keys() <= {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        "intermediate_size",
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["num_key_value_heads", "sliding_window", "rope_scaling"])
def test_null_is_not_the_same_as_missing(family: str, key: str) -> None:
    if (family, key) == ("mistral", "num_key_value_heads"):
        assert Arch.from_hf(hub(family, **{key: None})).kv_heads == 4  # transformers refuses it
        return
    config = hub(family, **{key: None}, use_sliding_window=family.startswith("qwen"))
    config |= {"max_window_layers": 0}
    assert ours(config) == reference(config)


def test_mistral_without_the_key_has_a_window() -> None:
    config = hub("mistral")
    del config["sliding_window"]
    assert Arch.from_hf(config).window == 4096
    assert Arch.from_hf(config | {"sliding_window": None}).window is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [False, 0, None, ""])
def test_attention_that_sees_what_follows_is_refused(family: str, value: object) -> None:
    with pytest.raises(UserError, match=r"is_causal is .*; supported: True"):
        Arch.from_hf(hub(family, is_causal=value))
    assert Arch.from_hf(hub(family, is_causal=True)) == Arch.from_hf(hub(family))


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"use_rope": False}, "use_rope is False"),
        ("llama", {"pre_norm": False}, "pre_norm is False"),
        ("llama", {"residual_multiplier": 0.0}, "residual_multiplier is 0.0"),
        ("llama", {"logit_scale": 0.5}, "logit_scale is 0.5"),
        ("llama", {"hidden_act": None}, "hidden_act is None"),
        ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama", {"attn_temperature_tuning": True}, "attn_temperature_tuning"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llama", {"pruned_heads": {"1": [0]}}, "pruned_heads"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps must be a number"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias is False"),
        ("qwen3", {"use_qk_norm": False}, "use_qk_norm is False"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window is switched on"),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "layer_types names 2 layers of 3"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types and sliding_window"),
        ("llama", {"rope_scaling": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ("qwen2", {"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.5}}, "1.0"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "disagree"),
    ],
)
def test_what_would_change_the_maths_is_refused(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Arch.from_hf(hub(family, **changes))
    assert "\n" not in str(caught.value)


BOOKKEEPING = {
    "_name_or_path": "x/y",
    "transformers_version": "4.40.0",
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "unsloth_fixed": True,
    "unsloth_version": "2024.9",
    "is_llama_config": True,
    "auto_map": {"AutoTokenizer": ["a.B", None]},
    "quantization_config": None,
    "pad_token_id": 0,
    "unk_token_id": 0,
    "tokenizer_class": "LlamaTokenizerFast",
    "bos_token": "<s>",
    "chat_template": "{{ messages }}",
    "gradient_checkpointing": True,
    "attention_dropout": 0.1,
    "use_cache": True,
    "temperature": 0.6,
    "max_length": 4096,
    "do_sample": True,
    "task_specific_params": {"a": 1},
    "is_decoder": True,
    "is_causal": True,
    "residual_multiplier": 1.0,
    "seed": 7,
    "learning_rate": 1e-4,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bookkeeping_is_read(family: str) -> None:
    assert Arch.from_hf(hub(family, **BOOKKEEPING)) == Arch.from_hf(hub(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_transformers_writes_is_read(family: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[family]().to_dict() | {"model_type": family}
    assert ours(config) == reference(config)


def test_code_that_is_not_there_changes_nothing(tmp_path) -> None:
    config = hub(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_arch(tmp_path) == Arch.from_hf(hub())
    (tmp_path / "modeling_mine.py").write_text("")
    with pytest.raises(UserError, match="auto_map"):
        read_arch(tmp_path)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("value", [2**31, 10**400, float("nan"), float("inf"), 1e300, True])
def test_a_size_of_no_model_is_refused_before_anything_is_made(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"config.json: {key} ") as caught:
        Arch.from_hf(hub(**{key: value}))
    assert len(str(caught.value)) < 200


def test_sizes_are_held_against_the_headers(tmp_path) -> None:
    """Within what a model may have, the weight files decide; nothing is allocated before."""
    from lw_jax.models.load import check_headers

    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((parity.GOLDEN / "llama" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4096}))
    with pytest.raises(UserError, match=r"layers\.3\..* is missing.*and \d+ more"):
        check_headers(open_checkpoint(tmp_path))
