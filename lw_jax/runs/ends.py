"""The pipeline of one end of a wire, and that of another run between the same receivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.models.checkpoint import read_arch, small_files
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.models.spec import FrozenSpec
from lw_jax.pipeline import Pipeline
from lw_jax.runs import receiver_rms
from lw_jax.runs.frozen import (
    about_models,
    make_receivers,
    prints_of,
    sender_arch,
    tokenizers_of,
)
from lw_jax.runs.nats import SenderNats
from lw_jax.runs.opened import Session
from lw_jax.runs.session import as_trained, known_as, loading, open_sender, sender_apart
from lw_jax.text.layout import prompts_of
from lw_jax.text.layout_config import LayoutConfig


def open_half(
    config: Config,
    mesh: Mesh,
    run_dir: Path,
    role: Literal["sender", "receiver"],
    saved: Mapping[str, Any],
) -> Pipeline:
    """The pipeline of one end of a wire: the models of the other end are not loaded.

    Of the receivers, the sending end reads the sizes in the run's `receivers.json`; of the sender,
    the receiving end reads its `config.json`. Fingerprints of models that are not loaded are taken
    from the run.

    Args:
        config: config of the run.
        mesh: the device mesh.
        run_dir: directory of the run, or of an exported bridge.
        role: which end.
        saved: what the bridge's file says of the models that it was trained between:
            `fingerprints`, and their `format` and `weights`.

    Raises:
        UserError: the receivers were not measured, or a model is not right.
    """
    assert config.bridge is not None
    session, recorded = Session(), dict(saved.get("fingerprints", {}))
    bare = dict(saved.get("weights", recorded if saved.get("format", 1) == 1 else {}))
    others = [{n: p for n, p in by.items() if n in config.receivers} for by in (recorded, bare)]
    measured = receiver_rms.load(run_dir, *others)
    if measured is None:
        raise UserError(
            f"{run_dir}: no {receiver_rms.FILE} of the bridge's receivers; load it with role='both'"
        )
    if role == "sender":
        senders, sender, prints, weights = open_sender(config, config.layout, mesh, session)
        read = {n: session.open(n, config.receivers[n]) for n in config.bridge.receivers_read}
        return Pipeline(
            layout=config.layout,
            bridge=Bridge(config.bridge, config.bridge.dims(sender_arch(senders), measured)),
            # of a receiver that a view reads, its embeddings alone
            frozen=FrozenModels.of(sender, _tables(read, session, mesh), {}),
            sources=tokenizers_of(config.bridge, senders | read),
            receivers={},
            fingerprints=prints | others[0],
            weights=weights | others[1],
            mesh=mesh,
            models=partial(about_models, config, senders),
            same_model=config.fingerprint == "same_model",
        )
    specs = {name: session.open(name, model) for name, model in config.receivers.items()}
    tokenizers = {name: spec.tokenizer for name, spec in specs.items()}
    receivers = make_receivers(config, specs, loading(session, mesh))
    own, weights = prints_of(config, specs)
    arch = None if config.sender is None else read_arch(small_files(config.sender.path))
    return Pipeline(
        layout=config.layout,
        bridge=Bridge(config.bridge, config.bridge.dims(arch, measured)),
        frozen=FrozenModels.of(None, receivers, prompts_of(config.layout, tokenizers)),
        sources=None,
        receivers=tokenizers,
        fingerprints=recorded | own,
        weights=bare | weights,
        mesh=mesh,
        models=partial(about_models, config, specs),
        same_model=config.fingerprint == "same_model",
    )


def open_rival(
    pipeline: Pipeline,
    config: Config,
    layout: LayoutConfig,
    run_dir: Path,
    session: Session | None = None,
) -> Pipeline:
    """The pipeline of another run, or exported bridge, between the same receivers.

    The receivers' weights are those of `pipeline`; the source and all sizes are its own.

    Args:
        pipeline: pipeline of the evaluation.
        config: config of the other run.
        layout: layout that its bridge was trained with.
        run_dir: directory of the other run.
        session: session of the evaluation, whose sender it may share; None: a new one.

    Raises:
        UserError: it trains no bridge, its receivers are others, or its sender is not right.
    """
    if config.bridge is None:
        raise UserError(f"{run_dir}: that run has no bridge")
    own = {name: pipeline.fingerprints[name] for name in pipeline.receivers}
    bare = {name: pipeline.weights[name] for name in pipeline.receivers if pipeline.weights}
    known = as_trained(run_dir, own, pipeline.models, pipeline.same_model)
    measured = receiver_rms.load(run_dir, known, bare)
    if measured is None:
        raise UserError(
            f"{run_dir}: its receivers are not {', '.join(own)} with the same weights, "
            "so it cannot read the same rows"
        )
    session = Session() if session is None else session
    # a sender whose edits were trained needs them where it reads, and stays with the bridge
    own_mesh = None
    if pipeline.apart is not None and config.bridge.edits_sender is None:
        own_mesh = pipeline.apart.mesh
    mesh = own_mesh or pipeline.mesh
    senders, sender, prints, weights = open_sender(config, layout, mesh, session)
    apart = sender_apart(sender, own_mesh)
    prompts = prompts_of(layout, pipeline.receivers)

    def models() -> dict[str, dict[str, str]]:
        shared = {} if pipeline.models is None else pipeline.models()
        kept = {name: one for name, one in shared.items() if name in own}
        return kept | about_models(config, senders)

    return replace(
        pipeline,
        layout=layout,
        bridge=Bridge(config.bridge, config.bridge.dims(sender_arch(senders), measured)),
        frozen=FrozenModels.of(known_as(sender, apart), pipeline.frozen.receivers, prompts),
        sources=tokenizers_of(config.bridge, senders, pipeline.receivers),
        fingerprints=prints | own,
        weights=weights | bare,
        models=models,
        nats=SenderNats(config, layout, mesh, session) if config.sender else None,
        apart=apart,
    )


def _tables(
    specs: Mapping[str, FrozenSpec], session: Session, mesh: Mesh
) -> dict[str, FrozenDecoder]:
    """Receivers without their layers and output heads."""
    found = {}
    for name, spec in specs.items():
        model = session.load(spec, mesh, layers=0, head=False)
        assert isinstance(model, FrozenDecoder)  # `open_model` opens no other receiver
        found[name] = model
    return found
