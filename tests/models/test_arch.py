"""Configs: what is read, and what is refused in one line."""

import json
from dataclasses import replace

import pytest

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch, Llama3Scaling, Rope
from tests.models import parity


def hub(family: str = "llama", **changes):
    config = json.loads((parity.GOLDEN / family / "hub_config.json").read_text())
    return {key: value for key, value in (config | changes).items() if value != "absent"}


def test_reads_a_llama_31_config():
    arch = Arch.from_hf(hub(), {"eos_token_id": [7, 8, 9]})
    assert arch == Arch(
        "llama",
        vocab_size=96,
        width=32,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        norm_eps=0.003,
        rope=Rope(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 16)),
        max_positions=64,
        bos_id=1,
        eos_ids=(7, 8, 9),
    )
    assert Arch.from_hf(hub()).eos_ids == (2, 3, 4)


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_written_config_is_read_back(name):
    arch = Arch.from_hf(hub(name))
    assert Arch.from_hf(arch.to_hf(), arch.generation_config()) == arch
    windowed = replace(arch, window=5 if arch.family != "llama" else None)
    assert Arch.from_hf(windowed.to_hf()) == windowed


def test_families_differ_where_they_should():
    archs = {name: Arch.from_hf(hub(name)) for name in parity.FAMILIES}
    assert {name for name, arch in archs.items() if arch.qkv_bias} == {"qwen2", "qwen2_tied"}
    assert {name for name, arch in archs.items() if arch.qk_norm} == {"qwen3"}
    assert {name for name, arch in archs.items() if arch.tied} == {"qwen2_tied", "qwen3"}
    assert archs["mistral"].window == 7
    assert archs["qwen2"].window is None
    assert Arch.from_hf(hub("qwen2", use_sliding_window=True, max_window_layers=0)).window == 64
    assert Arch.from_hf(hub("mistral", sliding_window=None)).window is None


def test_harmless_keys_pass():
    assert Arch.from_hf(
        hub(_name_or_path="x", unsloth_version="1", attn_logit_softcapping=None, auto_map={})
    ) == Arch.from_hf(hub())


YARN = {"rope_type": "yarn", "factor": 2.0}
LINEAR = {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"model_type": "gemma"}, "model_type 'gemma'"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architecture"),
        ("llama", {"rope_scaling": YARN}, "rope type 'yarn'"),
        ("llama", {"rope_scaling": LINEAR}, "rope type 'linear'"),
        ("llama", {"rope_scaling": None, "rope_parameters": YARN}, "rope type 'yarn'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000.0"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
        ("llama", {"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
        ("llama", {"hidden_size": "absent"}, "hidden_size must be a number"),
        ("llama", {"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ("llama", {"num_key_value_heads": 3}, "3 key/value heads"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "some layers"),
        ("qwen2", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "some layers"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
    ],
)
def test_what_would_change_the_maths_is_refused(family, changes, says):
    with pytest.raises(UserError, match=says) as caught:
        Arch.from_hf(hub(family, **changes))
    assert "\n" not in str(caught.value)
