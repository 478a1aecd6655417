"""What every stage of a run works with: the frozen parties, their layout, their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.bridge import module as bridge
from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.data.example import Group
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.models.dims import ReceiverDims
from lw_jax.models.frozen import Parties, Party
from lw_jax.pipeline import Setting
from lw_jax.receiver.loudness import measure_loudness
from lw_jax.runs import receiver_rms
from lw_jax.runs.frozen import load_receiver, load_source
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import check_labels, head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Speaker

MEASURED_ROWS = 2048
"""Contexts whose token lengths decide the static lengths of a batch."""
LOUDNESS_ROWS = 32
"""Contexts on which the receivers' loudness is measured."""
CHECKED_ROWS = 64
"""Contexts whose labels are proved at start-up."""


def identity(config: Config, name: str, setting: Setting) -> dict[str, Any]:
    """What a resumed stage must share: the config up to this stage, and the frozen weights."""
    plain = to_dict(config)
    names = list(plain["stages"])
    plain["stages"] = {n: plain["stages"][n] for n in names[: names.index(name) + 1]}
    return {"config": plain, "fingerprints": setting.fingerprints}


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
    source = load_source(config, config.layout, mesh)
    fingerprints = dict(source.fingerprints)
    speakers: dict[str, Speaker] = {}
    parties: dict[str, Party] = {}
    for name, model in config.receivers.items():
        loaded = load_receiver(name, model, config.layout, mesh)
        parties[name], speakers[name] = loaded.party, loaded.speaker
        fingerprints[name] = loaded.fingerprint
    prints = {name: fingerprints[name] for name in parties}
    loud = None if run_dir is None else receiver_rms.kept(run_dir, prints)
    if rows or loud is None:
        groups = sample(load_rows(config.data, "train", config.seed), CHECKED_ROWS)
        for who in speakers.values():
            check_labels(config.layout, who, [e for group in groups for e in group])
        if loud is None:
            loud = _loudness(config.layout, parties, speakers, groups[:LOUDNESS_ROWS])
        if run_dir is not None and rows:
            receiver_rms.keep(run_dir, loud, prints)
    return Setting(
        layout=config.layout,
        bridge=config.bridge,
        parties=Parties(source.party, parties),
        sender=source.speaker,
        receivers=speakers,
        fingerprints=fingerprints,
        dims=source.dims(config.bridge.latent_dim, loud),
        mesh=mesh,
    )


def set_up_beside(setting: Setting, config: Config, layout: LayoutConfig, run_dir: Path) -> Setting:
    """The setting of another run, or exported bridge, between the same receivers: their weights are
    those of `setting`, the source and all sizes its own.

    Args:
        config, layout, run_dir: of the other run.

    Raises:
        UserError: it trains no bridge, its receivers are others, or its sender is not right.
    """
    if config.bridge is None:
        raise UserError(f"{run_dir}: that run has no bridge")
    prints = {name: setting.fingerprints[name] for name in setting.receivers}
    loud = receiver_rms.kept(run_dir, prints)
    if loud is None:
        raise UserError(
            f"{run_dir}: its receivers are not {', '.join(prints)} with the same weights, "
            "so it cannot read the same rows"
        )
    source = load_source(config, layout, setting.mesh)
    receivers = {
        name: replace(
            party,
            head=tuple(head_ids(layout, setting.receivers[name])),
            beside_text=layout.beside_text,
        )
        for name, party in setting.parties.receivers.items()
    }
    return replace(
        setting,
        layout=layout,
        bridge=config.bridge,
        parties=Parties(source.party, receivers),
        sender=source.speaker,
        fingerprints=source.fingerprints | prints,
        dims=source.dims(config.bridge.latent_dim, loud),
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
