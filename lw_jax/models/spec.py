"""Opening a frozen model: its architecture, its tokenizer, its weight files.

Every use of a frozen model begins here: the doctor looks at the spec, a run loads it, and the
checks of shapes take its shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.errors import UserError
from lw_jax.models import apart, attention, kernels
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import (
    Checkpoint,
    fingerprint,
    open_checkpoint,
    read_arch,
    small_files,
)
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.fingerprint import meaning, whole
from lw_jax.models.frozen import Frozen, FrozenDecoder, FrozenEncoder
from lw_jax.models.load import abstract_params, check_headers, check_weights, load_params
from lw_jax.models.names import parts
from lw_jax.models.params import depth
from lw_jax.models.random import random_params, random_print
from lw_jax.models.split import as_laid_out, in_pieces
from lw_jax.models.tokenizer import (
    encoder_tokenizer,
    load_tokenizer,
    names_of,
    text_tokenizer,
    with_encoder_ids,
    with_tokenizer_ids,
)
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import PyTree


@dataclass(frozen=True, eq=False)
class FrozenSpec:
    """A frozen model that was opened, without its weights. Made by `open_model`.

    Attributes:
        name: `sender`, or the receiver's name.
        config: where its files are, and how its weights are stored.
        arch: its architecture, with the special ids that its tokenizer uses.
        tokenizer: turns texts into its tokens.
        opened: its files, by the layers and the head that were asked for: each is looked up once.
        digests: digests of the weight files that are in a fingerprint, so that each is read once.
        named: what its files name of the tokenizer: the special tokens and the chat template.
    """

    name: str
    config: ModelConfig
    arch: AnyArch
    tokenizer: Tokenizer
    opened: dict[tuple[int | None, bool], Checkpoint] = field(
        default_factory=dict, init=False, repr=False
    )
    digests: dict[Path, bytes] = field(default_factory=dict, init=False, repr=False)
    named: Mapping[str, Any] = field(default_factory=dict)

    def files(self, layers: int | None = None, head: bool = True) -> Checkpoint:
        """Its weight files; for a hub model, those that hold these layers are fetched.

        Args:
            layers: number of layers, from the first on; None: all.
            head: whether the output head is needed.

        Raises:
            UserError: the files are not there.
        """
        asked = layers, head
        if asked not in self.opened:
            self.opened[asked] = open_checkpoint(
                self.config.path, layers, head, self.config.revision
            )
        return self.opened[asked]

    def load(
        self, mesh: Mesh, layers: int | None = None, head: bool = True, have: Frozen | None = None
    ) -> Frozen:
        """The model, with its weights streamed onto the mesh.

        Args:
            mesh: the device mesh.
            layers: number of layers, from the first on (a sender's, up to its highest tap); None:
                all.
            head: False leaves the output head in the file.
            have: the same model with fewer layers, or without the head: only what it lacks is read.

        Raises:
            UserError: anything wrong with the weights, in one line.
        """
        if self.config.random_weights is not None:
            seed, dtype = self.config.random_weights, jnp.dtype(self.config.dtype)
            apart = self._apart(mesh)
            return self._with(
                random_params(self.arch, mesh, seed, dtype, layers, head, apart), mesh
            )
        found = self.files(layers, head)
        given = None if have is None else as_laid_out(have.params)
        how = {**self._storage, "layers": layers, "head": head, "apart": self._apart(mesh)}
        return self._with(load_params(found, mesh, **how, have=given), mesh)

    def abstract(self, mesh: Mesh, layers: int | None = None, head: bool = True) -> Frozen:
        """What `load` gives, as shapes with shardings; no weight is read."""
        how = {**self._storage, "layers": layers, "head": head, "apart": self._apart(mesh)}
        return self._with(abstract_params(self.arch, mesh, **how), mesh)

    def check_files(self, layers: int | None = None, head: bool = True) -> None:
        """Compares the headers of its weight files with its config; no weight is read.

        Args:
            layers: number of layers that are needed, from the first on; None: all.
            head: whether the output head is needed.

        Raises:
            UserError: a file is missing or cannot be read, or a tensor is missing, unexpected or of
                the wrong shape.
        """
        if self.config.random_weights is None:
            check_headers(self.files(layers, head), layers, head)

    def check_weights(self, layers: int | None = None, head: bool = True) -> None:
        """Reads its weights once, to see that all are finite; the model is not kept.

        Args:
            layers: number of layers that are needed, from the first on; None: all.
            head: whether the output head is needed.

        Raises:
            UserError: names the tensor that is not finite, or cannot be read.
        """
        if self.config.random_weights is None:
            check_weights(self.files(layers, head), layers, head, self._storage["dtype"])

    def fingerprint(self, layers: int | None = None, head: bool = True) -> str:
        """32 hex digits that change with whatever changes the model's maths or meaning.

        The fingerprint of a sender that is cut off at its highest tap does not depend on the files
        of the layers beyond. One of random weights ends in their seed, `+random7`.
        """
        return whole(self.weights_print(layers, head), self.meaning) + self._drawn

    def weights_print(self, layers: int | None = None, head: bool = True) -> str:
        """32 hex digits that change with the config, or with the files that hold these layers:
        the fingerprint of format 1.
        """
        if self.config.random_weights is not None:
            return random_print(self.arch, self.config.random_weights) + self._drawn
        found = self.files(layers, head)
        wanted = parts(found.arch, layers, head, found.files)
        return fingerprint(found.arch, {found.files[part.name] for part in wanted}, self.digests)

    @cached_property
    def meaning(self) -> str:
        """A digest of its tokenizer, its special tokens and its chat template."""
        ends = self.arch.eos_ids if isinstance(self.arch, Arch) else ()
        return meaning(self.tokenizer, ends, self.named)

    def holds(self, model: Frozen, layers: int | None = None, head: bool = True) -> bool:
        """Whether a loaded model has these layers, and the head if it is needed."""
        deep = depth(model.params) >= (self.arch.layers if layers is None else layers)
        headless = isinstance(model, FrozenDecoder) and "final_norm" not in model.params
        return deep and not (head and headless)

    @property
    def _drawn(self) -> str:
        """What a fingerprint says of random weights; "" for a model with its own."""
        seed = self.config.random_weights
        return "" if seed is None else f"+random{seed}"

    @property
    def _storage(self) -> dict[str, Any]:
        quant = None if self.config.quant == "none" else self.config.quant
        return {"dtype": jnp.dtype(self.config.dtype), "quant": quant}

    def _apart(self, mesh: Mesh) -> bool:
        return isinstance(self.arch, Arch) and apart.chosen(self.config.unroll, mesh)

    def _with(self, params: PyTree, mesh: Mesh) -> Frozen:
        asked, params = self.config.attention, in_pieces(params)
        if isinstance(self.arch, EncoderArch):  # small, and its masks are not causal
            return FrozenEncoder(params, self.arch, "xla" if asked == "auto" else asked)
        impl = attention.chosen(asked, mesh, self.arch.head_dim, **self._storage)
        fused = kernels.chosen(self.config.decoding, mesh, self.arch, **self._storage)
        return FrozenDecoder(params, self.arch, impl, fused=fused)


SENDER = "sender"
"""Name of the one model that need not be able to write."""


def open_model(name: str, config: ModelConfig) -> FrozenSpec:
    """Opens a model: reads its config and tokenizer, and checks them against each other.

    Args:
        name: `sender`, or a receiver's name. A receiver is a decoder, and so is what `load` gives.
        config: names a directory or a hub model; of the latter the small files are fetched.

    Raises:
        UserError: anything wrong with the model, in one line.
    """
    if config.random_weights is not None and name != SENDER:
        raise UserError(
            f"receivers.{name}.random_weights: a receiver has to write, so it keeps its own "
            "weights; set it to null (it is a control of the sender)"
        )
    folder, where = small_files(config.path, config.revision), str(config.path)
    arch = read_arch(folder)
    hf_tokenizer = load_tokenizer(folder)
    named = names_of(hf_tokenizer)
    if isinstance(arch, EncoderArch):
        if name != SENDER:
            raise UserError(
                f"receivers.{name}.path: a {arch.family} encoder reads and cannot write; "
                "a receiver is a language model"
            )
        encoder = with_encoder_ids(arch, hf_tokenizer, where)
        reader = encoder_tokenizer(name, hf_tokenizer, encoder)
        return FrozenSpec(name, config, encoder, reader, named)
    decoder = with_tokenizer_ids(arch, hf_tokenizer, where)
    tokenizer = text_tokenizer(name, hf_tokenizer, decoder.bos_id, decoder.eos_ids)
    return FrozenSpec(name, config, decoder, tokenizer, named)
