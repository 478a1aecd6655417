"""Writes a model as an ordinary Hugging Face directory, which transformers can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lw_jax.models.apart import piece_of
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import WEIGHTS
from lw_jax.models.names import parts
from lw_jax.types import PyTree
from lw_jax.utils.files import readable


def save_pretrained(
    directory: str | Path, arch: Arch, params: PyTree, tokenizer: Any | None = None
) -> None:
    """Writes config.json, generation_config.json, model.safetensors (bf16) and the tokenizer.

    Args:
        directory: where the files go.
        arch: the model.
        params: all of its weights, in any float dtype; they must fit into the host's memory.
        tokenizer: a transformers tokenizer; None: the caller writes its files.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.device_get(params)
    tensors = {}
    for part in parts(arch):
        layer = part.layer
        value = host[part.leaf] if layer is None else piece_of(arch, host, part.leaf, layer)
        tensors[part.name] = part.to_stored(np.asarray(value)).astype(ml_dtypes.bfloat16)
    with readable(folder / WEIGHTS):
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, value in (
        ("config.json", arch.to_hf()),
        ("generation_config.json", arch.generation_config()),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
