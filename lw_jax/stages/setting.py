"""What every stage of a run works with: the frozen parties, their layout, their sizes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lw_jax import bridge
from lw_jax.config.layout import LayoutConfig
from lw_jax.config.parse import to_dict
from lw_jax.config.parts import BridgeConfig
from lw_jax.config.schema import Config, ModelConfig
from lw_jax.data.example import Example, Rows
from lw_jax.dims import Dims, ReceiverDims
from lw_jax.errors import UserError
from lw_jax.models.checkpoint import open_checkpoint
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.lm import FrozenLM, load_encoder, load_lm
from lw_jax.party import EncoderParty, Parties, Party
from lw_jax.party import Sender as SenderParty
from lw_jax.receiver.collate import Collate, Lengths, measure
from lw_jax.receiver.layout import (
    Speaker,
    check_labels,
    encoder_speaker,
    head_ids,
    source_head_ids,
    speaker,
)
from lw_jax.receiver.loudness import measure_loudness
from lw_jax.registry import chosen
from lw_jax.stages import measured

MEASURED_ROWS = 2048
"""Contexts whose token lengths decide the static lengths of a batch."""
LOUDNESS_ROWS = 32
"""Contexts on which the receivers' loudness is measured."""
CHECKED_ROWS = 64
"""Contexts whose labels are proved at start-up."""

Group = Sequence[Example]


@dataclass(frozen=True)
class Setting:
    """The frozen side of a run, and how text reaches it.

    sender: in whose tokens the source is read (raw bytes have their own).
    """

    layout: LayoutConfig
    bridge: BridgeConfig
    parties: Parties
    sender: Speaker | None
    receivers: dict[str, Speaker]
    fingerprints: dict[str, str]
    dims: Dims
    mesh: Mesh

    def collate(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Collate:
        """A collator whose static lengths hold these rows."""
        return Collate(
            layout or self.layout, self.sender, self.receivers, self.lengths(groups, layout)
        )

    def lengths(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Lengths:
        """Static lengths that hold these rows."""
        layout = layout or self.layout
        return measure(layout, self.sender, self.receivers, groups, layout.max_tokens)


def load_rows(data: Any, split: str, seed: int, level: int | None = None) -> Rows:
    """The rows of a split, at one level of a curriculum if one is given.

    Raises:
        UserError: the data has no row of that level, or cannot be read.
    """
    ((name, config),) = chosen(data).items()
    module = importlib.import_module(f"lw_jax.data.{name}")
    return module.rows(config, split, seed, level)


def labels_of(data: Any) -> tuple[str, ...]:
    """Every answer that a row may have, where the data is a task of a few labels; else none."""
    ((name, config),) = chosen(data).items()
    known = getattr(importlib.import_module(f"lw_jax.data.{name}"), "labels", None)
    return () if known is None else known(config)


def sample(rows: Rows, count: int) -> list[Group]:
    """`count` contexts spread evenly over the rows."""
    if not len(rows):
        raise UserError("data: no rows; check the file and the split")
    picked = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
    return [rows[int(i)] for i in picked]


def identity(config: Config, name: str, setting: Setting) -> dict[str, Any]:
    """What a resumed stage must share: the config up to this stage, and the frozen weights."""
    plain = to_dict(config)
    names = list(plain["stages"])
    plain["stages"] = {n: plain["stages"][n] for n in names[: names.index(name) + 1]}
    return {"config": plain, "fingerprints": setting.fingerprints}


def _storage(config: ModelConfig) -> dict[str, Any]:
    quant = None if config.quant == "none" else config.quant
    return {"dtype": jnp.dtype(config.dtype), "quant": quant}


def _party(layout: LayoutConfig, config: ModelConfig, lm: FrozenLM, head: list[int]) -> Party:
    return Party(lm.params, lm.arch, tuple(head), config.attention, layout.beside_text)


@dataclass(frozen=True)
class _Sender:
    """A sender loaded as far as its source reads it, how it reads a text, and its fingerprint."""

    party: SenderParty
    speaker: Speaker
    fingerprint: str


def _sender(config: Config, model: ModelConfig, arch: AnyArch, mesh: Mesh) -> _Sender:
    assert config.bridge is not None
    source, options = bridge.part("sources", config.bridge.source)
    layers, storage = source.depth(options, arch), _storage(model)
    if isinstance(arch, EncoderArch):
        encoder = load_encoder(model.path, mesh, layers=layers, **storage)
        who = encoder_speaker("sender", encoder.tokenizer, encoder.arch)
        source_head_ids(config.layout, who)  # raises where it cannot read what the layout asks for
        party = EncoderParty(encoder.params, encoder.arch, model.attention)
        return _Sender(party, who, f"{encoder.fingerprint}@{layers}")
    lm = load_lm(model.path, mesh, layers=layers, head=False, **storage)
    who = speaker("sender", lm.tokenizer, lm.arch.bos_id, lm.arch.eos_ids)
    head = source_head_ids(config.layout, who)
    return _Sender(_party(config.layout, model, lm, head), who, f"{lm.fingerprint}@{layers}")


def set_up(config: Config, mesh: Mesh, run_dir: Path | None = None, rows: bool = True) -> Setting:
    """Load the frozen models, prove the labels, measure the receivers.

    Args:
        run_dir: of a run, which measures its receivers once.
        rows: False where no label is needed; rows are then read only to measure the receivers, if
            the run has not, and nothing is written.

    Raises:
        UserError: a model, the data, or the labels of a receiver's tokenizer are not right.
    """
    assert config.bridge is not None
    bridge.check_readers(config.bridge)
    arch = None
    if config.sender is not None:
        arch = open_checkpoint(config.sender.path, 0, False).arch
    width, taps, vocab = bridge.source_dims(config.bridge, arch)
    deep = bridge.sender_dims(config.bridge, arch)
    sent = None
    fingerprints: dict[str, str] = {}
    if config.sender is not None and arch is not None:
        sent = _sender(config, config.sender, arch, mesh)
        fingerprints["sender"] = sent.fingerprint
    speakers: dict[str, Speaker] = {}
    parties: dict[str, Party] = {}
    for name, model in config.receivers.items():
        lm = load_lm(model.path, mesh, **_storage(model))
        speakers[name] = speaker(name, lm.tokenizer, lm.arch.bos_id, lm.arch.eos_ids)
        head = head_ids(config.layout, speakers[name])
        parties[name] = _party(config.layout, model, lm, head)
        fingerprints[name] = lm.fingerprint
    sender = bridge.source_speaker(config.bridge, None if sent is None else sent.speaker)
    prints = {name: fingerprints[name] for name in parties}
    loud = None if run_dir is None else measured.kept(run_dir, prints)
    if rows or loud is None:
        groups = sample(load_rows(config.data, "train", config.seed), CHECKED_ROWS)
        for who in speakers.values():
            check_labels(config.layout, who, [e for group in groups for e in group])
        if loud is None:
            loud = _loudness(config.layout, parties, speakers, groups[:LOUDNESS_ROWS])
        if run_dir is not None and rows:
            measured.keep(run_dir, loud, prints)
    return Setting(
        layout=config.layout,
        bridge=config.bridge,
        parties=Parties(None if sent is None else sent.party, parties),
        sender=sender,
        receivers=speakers,
        fingerprints=fingerprints,
        dims=Dims(width, taps, config.bridge.latent_dim, loud, vocab, deep),
        mesh=mesh,
    )


def _loudness(
    layout: LayoutConfig,
    parties: dict[str, Party],
    speakers: dict[str, Speaker],
    groups: Sequence[Group],
) -> dict[str, ReceiverDims]:
    """How loud the receivers are on some contexts."""
    one = [group[:1] for group in groups]
    some = Collate(layout, None, speakers, measure(layout, None, speakers, one, layout.max_tokens))(
        one
    )
    return {
        name: measure_loudness(
            party,
            jnp.asarray(some[f"{name}/context/ids"]),
            jnp.asarray(some[f"{name}/context/lengths"]),
        )
        for name, party in parties.items()
    }
