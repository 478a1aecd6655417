"""What a frozen model is, apart from how its numbers are stored.

A fingerprint covers the bytes of the weight files, so the same model in another format or number of
bits has another. Here are the parts that it would share with it: its shape and its tokenizer, and
beside them how it is stored, in words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import Checkpoint
from lw_jax.models.gguf import is_gguf, open_gguf
from lw_jax.models.load import open_files
from lw_jax.models.names import parts
from lw_jax.models.spec import FrozenSpec

About = Mapping[str, str]
"""`shape`, `tokenizer` (hex digits) and `stored` (words) of a model; what `bridge.json` keeps."""

_PLACEHOLDER = re.compile(r"\[PAD\d+\]")
"""Entries with which GGUF files fill a vocabulary up; no text has them."""
_NOT_SHAPE = ("init_std", "max_positions", "bos_id", "eos_ids")
"""Fields of an architecture that change nothing of what it computes; ids are the tokenizer's."""


def about(spec: FrozenSpec, layers: int | None = None, head: bool = True) -> dict[str, str]:
    """What a model is, and how it is stored.

    Args:
        spec: the model.
        layers: number of layers that are used, from the first on; None: all.
        head: whether the output head is.

    Raises:
        UserError: a file cannot be read.
    """
    config = spec.config
    drawn = config.random_weights
    files = f"random weights {drawn}" if drawn is not None else _files(spec, layers, head)
    bits = config.dtype if config.quant == "none" else f"{config.quant} and {config.dtype}"
    return {
        "shape": _shape(spec),
        "tokenizer": _tokenizer(spec),
        "stored": f"{files}, run in {bits}",
    }


def same_model(one: About, other: About) -> bool:
    """Whether two are of the same config, shapes and tokenizer: one model, as far as these say.

    A model that was trained further has them, too: only a measurement tells those apart.
    """
    return all(one.get(key) == other.get(key) for key in ("shape", "tokenizer"))


def _files(spec: FrozenSpec, layers: int | None, head: bool) -> str:
    """In which format and types of numbers the weights that are used lie on disk."""
    found: Checkpoint = spec.files(layers, head)
    if is_gguf(found.directory):
        return open_gguf(found.directory).stored
    names = {part.name for part in parts(found.arch, layers, head, found.files)}
    with ExitStack() as stack:
        files = open_files(stack, found, names)
        types = {files[found.files[name]].get_slice(name).get_dtype() for name in names}
    return f"safetensors {', '.join(sorted(types))}"


def _shape(spec: FrozenSpec) -> str:
    """Digest of what its config says of the maths; floats to six digits, as files round them."""
    plain = {k: v for k, v in asdict(spec.arch).items() if k not in _NOT_SHAPE}
    plain["random"] = spec.config.random_weights
    return _digest(_rounded(plain))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def _tokenizer(spec: FrozenSpec) -> str:
    """Digest of its vocabulary with its ids, and of the ids that begin and end a sequence."""
    tokenizer = spec.tokenizer
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    kept = sorted((token, i) for token, i in ids.items() if not _PLACEHOLDER.fullmatch(token))
    ends = [tokenizer.eos_id] if isinstance(spec.arch, Arch) else []
    return _digest([kept, tokenizer.bos_id, ends])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
