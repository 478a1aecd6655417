"""Models in other files than safetensors, written as an ordinary Hugging Face directory."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError, said
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import WEIGHTS
from lw_jax.models.config import ModelConfig
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.gguf import is_gguf
from lw_jax.models.names import EMBED, HEAD
from lw_jax.models.save import save_pretrained
from lw_jax.models.spec import SENDER, open_model
from lw_jax.models.tokenizer import load_tokenizer
from lw_jax.utils.files import readable

PICKLED = ("*.bin", "*.pt", "*.pth")
NAMED = "pytorch_model"
"""What files of weights are called; where there are some, others are not the model's, such as the
`training_args.bin` and `optimizer.pt` of a trainer."""
SMALL = ("*.json", "*.model", "*.txt", "*.jinja")
"""Config and tokenizer, which stay as they are."""
INDICES = ("pytorch_model.bin.index.json", "model.safetensors.index.json")


def convert(model: Path, out: Path) -> str:
    """Writes a model in safetensors; the result is opened once, to see that it is one.

    Args:
        model: a GGUF file, or a directory with one, or with pickled weights. Of those only tensors
            are read (torch's `weights_only`): nothing that is in a pickle is run.
        out: a directory that is not there yet; it is there as a whole or not at all.

    Returns:
        What was done, in a line.

    Raises:
        UserError: there is nothing to convert, it cannot be read, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"convert: {out} is there already; name another directory")
    if not model.exists():
        raise UserError(f"convert: {model}: no such file or directory")
    if not out.parent.is_dir():
        raise UserError(f"convert: {out}: there is no directory {out.parent}")
    pickled = [] if model.is_file() else sorted(p for one in PICKLED for p in model.glob(one))
    pickled = [p for p in pickled if p.name.startswith(NAMED)] or pickled
    if not pickled and not is_gguf(model):
        raise UserError(
            f"convert: {model}: neither a GGUF file nor a directory with pickled weights "
            f"({', '.join(PICKLED)}); safetensors are read as they are"
        )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        made = Path(place) / "model"
        done = _unpickled(model, pickled, made) if pickled else _dequantised(model, made)
        open_model(SENDER, ModelConfig(str(made))).check_files()
        made.rename(out)
    return done


def _dequantised(model: Path, out: Path) -> str:
    spec = open_model(SENDER, ModelConfig(str(model), dtype="bfloat16"))
    assert isinstance(spec.arch, Arch)
    loaded = spec.load(make_mesh(MeshConfig(data=1)))
    assert isinstance(loaded, FrozenDecoder)
    save_pretrained(out, spec.arch, loaded.params, load_tokenizer(model))
    return f"{model}: dequantised to bfloat16"


def _unpickled(model: Path, files: list[Path], out: Path) -> str:
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise UserError(
            'convert: pickled weights are read by torch: python -m pip install "lw_jax[parity]"'
        ) from error
    out.mkdir()
    for file in sorted(p for one in SMALL for p in model.glob(one)):
        if file.name not in INDICES:
            shutil.copyfile(file, out / file.name)
    tied = _tied(model)
    where: dict[str, str] = {}
    size = 0
    for i, file in enumerate(files, 1):
        if not zipfile.is_zipfile(file):
            raise UserError(
                f"convert: {file}: no archive as torch.save writes it; copy it again, or, if it is "
                "older than torch 1.6, load it and save it anew"
            )
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise UserError(f"convert: {file}: {said(error)}") from error
        if not isinstance(held, Mapping) or not held:
            raise UserError(f"convert: {file}: expected tensors by name")
        wrong = next((k for k, v in held.items() if not isinstance(v, torch.Tensor)), None)
        if wrong is not None:
            raise UserError(
                f"convert: {file}: {wrong} is no tensor; is it a checkpoint of training?"
            )
        tensors: dict[str, Any] = {
            name: value.clone().contiguous()
            for name, value in held.items()
            if not (tied and name == HEAD and EMBED in held and value.equal(held[EMBED]))
        }
        name = WEIGHTS if len(files) == 1 else f"model-{i:05}-of-{len(files):05}.safetensors"
        with readable(out / name):
            save_file(tensors, out / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        size += sum(value.numel() * value.element_size() for value in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        text = json.dumps(index, indent=2) + "\n"
        (out / INDICES[1]).write_text(text, encoding="utf-8")
    return f"{model}: {len(where)} tensors of {len(files)} pickled files, {size / 2**20:,.0f} MiB"


def _tied(model: Path) -> bool:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("tie_word_embeddings"))
