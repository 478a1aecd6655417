"""A frozen model, ready to take part in a wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.errors import UserError
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import Checkpoint, fingerprint, open_checkpoint
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.models.load import load_params
from lw_jax.models.names import parts
from lw_jax.models.tokenizer import load_tokenizer, with_encoder_ids, with_tokenizer_ids
from lw_jax.types import PyTree


@dataclass(frozen=True)
class FrozenLM:
    """name: as the user gave it; fingerprint: of the weights' content and the arch.

    params lie on the mesh and are arguments of jitted functions: never donated, never trained.
    """

    name: str
    arch: Arch
    params: PyTree
    tokenizer: Any
    fingerprint: str


@dataclass(frozen=True)
class FrozenEncoder:
    """A sentence encoder; fields as in `FrozenLM`."""

    name: str
    arch: EncoderArch
    params: PyTree
    tokenizer: Any
    fingerprint: str


def load_lm(
    name_or_path: str | Path,
    mesh: Mesh,
    *,
    dtype: Any = jnp.bfloat16,
    quant: str | None = None,
    layers: int | None = None,
    head: bool = True,
) -> FrozenLM:
    """Loads a model from a directory or the hub, streamed onto the mesh.

    Arguments as for `load.load_params`. The fingerprint covers the files that were read: for a
    sender cut off at its highest tap, those that hold its layers.

    Raises:
        UserError: anything wrong with the model, in one line.
    """
    found = open_checkpoint(name_or_path, layers, head)
    if isinstance(found.arch, EncoderArch):
        raise UserError(
            f"{name_or_path}: a {found.arch.family} encoder reads and cannot write; "
            "a language model is needed here"
        )
    tokenizer = load_tokenizer(found.directory)
    arch = with_tokenizer_ids(found.arch, tokenizer, str(name_or_path))
    params = load_params(found, mesh, dtype=dtype, quant=quant, layers=layers, head=head)
    mark = _fingerprint(found, layers, head)
    return FrozenLM(str(name_or_path), arch, params, tokenizer, mark)


def load_encoder(
    name_or_path: str | Path,
    mesh: Mesh,
    *,
    dtype: Any = jnp.bfloat16,
    quant: str | None = None,
    layers: int | None = None,
) -> FrozenEncoder:
    """Loads a sentence encoder likewise; its pooler and heads stay in the file.

    Raises:
        UserError: anything wrong with the model, in one line; a decoder is wrong.
    """
    found = open_checkpoint(name_or_path, layers)
    if not isinstance(found.arch, EncoderArch):
        raise UserError(f"{name_or_path}: a {found.arch.family} decoder, and no sentence encoder")
    tokenizer = load_tokenizer(found.directory)
    arch = with_encoder_ids(found.arch, tokenizer, str(name_or_path))
    params = load_params(found, mesh, dtype=dtype, quant=quant, layers=layers)
    return FrozenEncoder(
        str(name_or_path), arch, params, tokenizer, _fingerprint(found, layers, True)
    )


def _fingerprint(found: Checkpoint, layers: int | None, head: bool) -> str:
    """Of the files that hold what is read."""
    wanted = parts(found.arch, layers, head, found.files)
    return fingerprint(found.arch, {found.files[part.name] for part in wanted})
