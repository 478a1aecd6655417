"""Loading what is frozen: a receiver, or a source with the sender that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.bridge.config import BridgeConfig
from lw_jax.config.schema import Config
from lw_jax.models.checkpoint import open_checkpoint
from lw_jax.models.config import ModelConfig
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.frozen import FrozenDecoder, FrozenEncoder, Sender
from lw_jax.models.lm import FrozenLM, load_encoder, load_lm
from lw_jax.text.collate import Sources
from lw_jax.text.layout import head_ids, source_head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer, encoder_tokenizer, text_tokenizer


@dataclass(frozen=True)
class Loaded:
    """A frozen model as a step sees it, how text reaches it, and its fingerprint."""

    model: Any
    tokenizer: Tokenizer
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """The frozen side of a bridge's source.

    Attributes:
        tokenizers: in whose tokens it is read.
        model: the sender; None where there is none.
        fingerprints: of the sender, if there is one.
        arch: what the sender is, all of its layers.
    """

    tokenizers: Sources
    model: Sender | None
    fingerprints: dict[str, str]
    arch: AnyArch | None


def load_receiver(name: str, model: ModelConfig, layout: LayoutConfig, mesh: Mesh) -> Loaded:
    """The whole model."""
    lm = load_lm(model.path, mesh, **_storage(model))
    tokenizer = text_tokenizer(name, lm.tokenizer, lm.arch.bos_id, lm.arch.eos_ids)
    return Loaded(_party(layout, model, lm, head_ids(layout, tokenizer)), tokenizer, lm.fingerprint)


def load_source(config: Config, layout: LayoutConfig, mesh: Mesh) -> Source:
    """What a run's source needs: its sender's first layers, if it reads one."""
    assert config.bridge is not None
    arch = None
    if config.sender is not None:
        arch = open_checkpoint(config.sender.path, 0, False).arch
    config.bridge.dims(arch, {})  # raises where a source cannot read the sender
    tokenizer, model, fingerprints = None, None, dict[str, str]()
    if config.sender is not None and arch is not None:
        layers = config.bridge.sender_layers(arch)
        sent = _sender(config.sender, arch, layers, layout, mesh)
        tokenizer, model, fingerprints["sender"] = sent.tokenizer, sent.model, sent.fingerprint
    return Source(tokenizers_of(config.bridge, tokenizer), model, fingerprints, arch)


def tokenizers_of(bridge: BridgeConfig, sender: Tokenizer | None) -> Sources:
    """In whose tokens the source of a bridge is read, by the views' keys in a batch."""
    found = bridge.tokenizers(sender)
    return {bridge.batch_key(name): one for name, one in found.items() if one is not None}


def _sender(
    model: ModelConfig, arch: AnyArch, layers: int, layout: LayoutConfig, mesh: Mesh
) -> Loaded:
    """As many layers as the source reads, without an output head."""
    if isinstance(arch, EncoderArch):
        encoder = load_encoder(model.path, mesh, layers=layers, **_storage(model))
        tokenizer = encoder_tokenizer("sender", encoder.tokenizer, encoder.arch)
        source_head_ids(layout, tokenizer)  # raises where it cannot read what the layout asks for
        frozen = FrozenEncoder(encoder.params, encoder.arch, model.attention)
        return Loaded(frozen, tokenizer, f"{encoder.fingerprint}@{layers}")
    lm = load_lm(model.path, mesh, layers=layers, head=False, **_storage(model))
    tokenizer = text_tokenizer("sender", lm.tokenizer, lm.arch.bos_id, lm.arch.eos_ids)
    head = source_head_ids(layout, tokenizer)
    return Loaded(_party(layout, model, lm, head), tokenizer, f"{lm.fingerprint}@{layers}")


def _storage(config: ModelConfig) -> dict[str, Any]:
    quant = None if config.quant == "none" else config.quant
    return {"dtype": jnp.dtype(config.dtype), "quant": quant}


def _party(
    layout: LayoutConfig, config: ModelConfig, lm: FrozenLM, head: list[int]
) -> FrozenDecoder:
    return FrozenDecoder(lm.params, lm.arch, tuple(head), config.attention, layout.with_text)
