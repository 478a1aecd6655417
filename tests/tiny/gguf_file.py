"""GGUF files of small Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lw_jax.models import gguf as reading
from lw_jax.models.checkpoint import WEIGHTS, read_arch

NAMES = {new: old for old, new in reading._TOP.items()}


def _package() -> Any:
    import gguf

    return gguf


def paired(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of queries and keys: numbers that rotate together are neighbours."""
    halves = values.reshape(heads, 2, -1, values.shape[-1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def short(name: str) -> str:
    """A tensor's name in a GGUF file."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    old = {new: old for old, new in reading._LAYER.items()}[rest]
    return f"blk.{layer}.{old}"


def write_gguf(path: Path, folder: Path, kind: str = "F32", **changes: Any) -> Path:
    """A GGUF file of a Hugging Face directory; with its tokenizer, if that has one.

    Args:
        path: the file.
        folder: the directory.
        kind: how matrices are stored.
        changes: metadata to change, by its key without the architecture (null: left out); dots are
            written as two underscores.
    """
    arch = read_arch(folder)
    name = "llama" if arch.family in ("llama", "mistral") else arch.family
    out = _package().GGUFWriter(path, changes.pop("architecture", name))
    said: dict[str, Any] = {
        "block_count": arch.layers,
        "context_length": arch.max_positions,
        "embedding_length": arch.width,
        "feed_forward_length": arch.mlp_width,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        "attention.layer_norm_rms_epsilon": arch.norm_eps,
        "rope.freq_base": arch.rope.theta,
        "vocab_size": arch.vocab_size,
    }
    said |= {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in said.items():
        if isinstance(value, float):
            out.add_float32(f"{out.arch}.{key}", value)
        elif isinstance(value, str):
            out.add_string(f"{out.arch}.{key}", value)
        elif value is not None:
            out.add_uint32(f"{out.arch}.{key}", value)
    out.add_tokenizer_model("gpt2")
    if (folder / "tokenizer.json").is_file():
        _add_tokenizer(out, json.loads((folder / "tokenizer.json").read_text()))
        for add in (out.add_eos_token_id, out.add_unk_token_id, out.add_pad_token_id):
            add(arch.eos_ids[0])  # none that the vocabulary lacks
        if arch.bos_id is not None:
            out.add_bos_token_id(arch.bos_id)
            out.add_add_bos_token(True)
    else:
        out.add_token_list([f"t{i}" for i in range(arch.vocab_size)])
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
    for full, values in load_file(folder / WEIGHTS).items():
        if arch.tied and full == "lm_head.weight":
            continue
        values = values.astype(np.float32)
        if name == "llama" and "q_proj" in full:
            values = paired(values, arch.heads)
        if name == "llama" and "k_proj" in full:
            values = paired(values, arch.kv_heads)
        fits = values.ndim > 1 and values.shape[-1] % 32 == 0  # blocks have 32 values
        stored = _package().GGMLQuantizationType[kind if fits else "F32"]
        data = _package().quants.quantize(values, stored)
        out.add_tensor(short(full), data, raw_dtype=stored)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _add_tokenizer(out: Any, held: dict[str, Any]) -> None:
    """The vocabulary and merges of a tokenizer.json of bytes."""
    vocab = {**held["model"]["vocab"], **{t["content"]: t["id"] for t in held["added_tokens"]}}
    special = {t["content"] for t in held["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types([3 if token in special else 1 for token in tokens])
    merges = held["model"]["merges"]
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
