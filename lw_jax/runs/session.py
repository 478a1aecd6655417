"""What every stage of a run works with: the frozen parties, their layout, their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.data.example import Group
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.models.dims import ModelDims
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.pipeline import Pipeline
from lw_jax.receiver.loudness import measure_rms
from lw_jax.runs import receiver_rms
from lw_jax.runs.frozen import load_receiver, load_source
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import check_labels, head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

MEASURED_ROWS = 2048
"""Contexts whose token lengths decide the static lengths of a batch."""
LOUDNESS_ROWS = 32
"""Contexts on which the receivers' loudness is measured."""
CHECKED_ROWS = 64
"""Contexts whose labels are proved at start-up."""


def identity(config: Config, name: str, pipeline: Pipeline) -> dict[str, Any]:
    """What a resumed stage must share: the config up to this stage, and the frozen weights."""
    plain = to_dict(config)
    names = list(plain["stages"])
    plain["stages"] = {n: plain["stages"][n] for n in names[: names.index(name) + 1]}
    return {"config": plain, "fingerprints": pipeline.fingerprints}


def open_pipeline(
    config: Config, mesh: Mesh, run_dir: Path | None = None, rows: bool = True
) -> Pipeline:
    """Load the frozen models, prove the labels, measure the receivers.

    Args:
        run_dir: of a run, which measures its receivers once.
        rows: False where no label is needed; rows are then read only to measure the receivers, if
            the run has not, and nothing is written.

    Raises:
        UserError: a model, the data, or the labels of a receiver's tokenizer are not right.
    """
    assert config.bridge is not None
    source = load_source(config, config.layout, mesh)
    fingerprints = dict(source.fingerprints)
    tokenizers: dict[str, Tokenizer] = {}
    frozen: dict[str, FrozenDecoder] = {}
    for name, model in config.receivers.items():
        loaded = load_receiver(name, model, config.layout, mesh)
        frozen[name], tokenizers[name] = loaded.model, loaded.tokenizer
        fingerprints[name] = loaded.fingerprint
    prints = {name: fingerprints[name] for name in frozen}
    loud = None if run_dir is None else receiver_rms.load(run_dir, prints)
    if rows or loud is None:
        groups = sample(load_rows(config.data, "train", config.seed), CHECKED_ROWS)
        for tokenizer in tokenizers.values():
            check_labels(config.layout, tokenizer, [e for group in groups for e in group])
        if loud is None:
            loud = _loudness(config.layout, frozen, tokenizers, groups[:LOUDNESS_ROWS])
        if run_dir is not None and rows:
            receiver_rms.save(run_dir, loud, prints)
    return Pipeline(
        layout=config.layout,
        bridge=Bridge(config.bridge, config.bridge.dims(source.arch, loud)),
        frozen=FrozenModels(source.model, frozen),
        sources=source.tokenizers,
        receivers=tokenizers,
        fingerprints=fingerprints,
        mesh=mesh,
    )


def open_rival(pipeline: Pipeline, config: Config, layout: LayoutConfig, run_dir: Path) -> Pipeline:
    """The pipeline of another run, or exported bridge, between the same receivers: their weights
    are those of `pipeline`, the source and all sizes its own.

    Args:
        config, layout, run_dir: of the other run.

    Raises:
        UserError: it trains no bridge, its receivers are others, or its sender is not right.
    """
    if config.bridge is None:
        raise UserError(f"{run_dir}: that run has no bridge")
    prints = {name: pipeline.fingerprints[name] for name in pipeline.receivers}
    loud = receiver_rms.load(run_dir, prints)
    if loud is None:
        raise UserError(
            f"{run_dir}: its receivers are not {', '.join(prints)} with the same weights, "
            "so it cannot read the same rows"
        )
    source = load_source(config, layout, pipeline.mesh)
    receivers = {
        name: replace(
            model,
            head=tuple(head_ids(layout, pipeline.receivers[name])),
            with_text=layout.with_text,
        )
        for name, model in pipeline.frozen.receivers.items()
    }
    return replace(
        pipeline,
        layout=layout,
        bridge=Bridge(config.bridge, config.bridge.dims(source.arch, loud)),
        frozen=FrozenModels(source.model, receivers),
        sources=source.tokenizers,
        fingerprints=source.fingerprints | prints,
    )


def _loudness(
    layout: LayoutConfig,
    frozen: dict[str, FrozenDecoder],
    tokenizers: dict[str, Tokenizer],
    groups: Sequence[Group],
) -> dict[str, ModelDims]:
    """How loud the receivers are on some contexts."""
    one = [group[:1] for group in groups]
    some = Collate(
        layout, None, tokenizers, measure(layout, None, tokenizers, one, layout.max_tokens)
    )(one)
    return {
        name: measure_rms(
            model,
            jnp.asarray(some[f"{name}/context/ids"]),
            jnp.asarray(some[f"{name}/context/lengths"]),
        )
        for name, model in frozen.items()
    }
