"""What every stage of a run works with: the frozen models, their layout, their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from lw_jax.bridge.apart import SenderApart
from lw_jax.bridge.bridge import Bridge
from lw_jax.config.schema import Config
from lw_jax.data.example import Group, Rows
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.mesh import make_sender_mesh
from lw_jax.models.dims import ModelDims
from lw_jax.models.frozen import Elsewhere, FrozenDecoder, FrozenModels, Sender
from lw_jax.models.spec import SENDER, FrozenSpec
from lw_jax.pipeline import Pipeline
from lw_jax.receiver.rms import measure_rms
from lw_jax.runs import receiver_rms
from lw_jax.runs.exported import about_bridge, is_exported
from lw_jax.runs.frozen import (
    Make,
    about_models,
    agreed,
    make_receivers,
    make_sender,
    prints_of,
    sender_arch,
    tokenizers_of,
)
from lw_jax.runs.nats import SenderNats
from lw_jax.runs.opened import Session
from lw_jax.text.collate import Collate, by_key, measure
from lw_jax.text.fit import length_remark
from lw_jax.text.layout import check_labels, check_reading, prompts_of, source_head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils import hosts

MEASURED_ROWS = 2048
"""Number of contexts whose token lengths decide the static lengths of a batch."""
RMS_ROWS = 32
"""Number of contexts on which the receivers' RMS is measured."""
CHECKED_ROWS = 64
"""Number of contexts whose labels are checked at start-up."""


def open_pipeline(
    config: Config,
    mesh: Mesh,
    run_dir: Path | None = None,
    rows: bool = True,
    session: Session | None = None,
) -> Pipeline:
    """The frozen models, loaded unless the session has them; checks labels, measures receivers.

    Args:
        config: config of the run.
        mesh: the device mesh.
        run_dir: directory of a run, which measures its receivers once; None: no run.
        rows: False if no label is needed; then rows are read only to measure the receivers, if
            the run has not done so, and nothing is written.
        session: session of the run; None: a new one.

    Raises:
        UserError: a model, the data, or the labels of a receiver's tokenizer are not right.
    """
    assert config.bridge is not None
    session = Session() if session is None else session
    own_mesh = make_sender_mesh(config.mesh)
    there = own_mesh or mesh
    senders, sender, prints, weights = open_sender(config, config.layout, there, session)
    specs = {name: session.open(name, model) for name, model in config.receivers.items()}
    tokenizers = {name: spec.tokenizer for name, spec in specs.items()}
    prompts = prompts_of(config.layout, tokenizers)
    own, bare = prints_of(config, specs)
    models = partial(about_models, config, senders | specs)
    others = config.fingerprint == "same_model"
    measured = None
    if run_dir is not None:
        measured = receiver_rms.load(run_dir, as_trained(run_dir, own, models, others), bare)
    hosts.meet("the receivers' sizes")  # before one measures and writes them
    if measured is None and not rows and run_dir is not None and receiver_rms.known(run_dir):
        raise UserError(
            f"{run_dir}: its bridge belongs to other receivers than {', '.join(own)} with these "
            "weights, tokenizers and chat templates; use the models of the run"
        )
    receivers = make_receivers(config, specs, loading(session, mesh))
    if rows or measured is None:
        training = load_rows(config.data, "train", config.seed)
        groups = sample(training, CHECKED_ROWS)
        sources = by_key(tokenizers_of(config.bridge, senders, tokenizers))
        check_texts(config.layout, tokenizers, sources, groups)
        if measured is None:
            layout = replace(config.layout, text_budget=None)  # whole texts, as for the bridge
            fitting = _fitting(layout, tokenizers, groups[:RMS_ROWS], training)
            measured = _receiver_rms(layout, receivers, tokenizers, fitting)
        if run_dir is not None and rows:
            receiver_rms.save(run_dir, measured, own)
    apart = sender_apart(sender, own_mesh)
    return Pipeline(
        layout=config.layout,
        bridge=Bridge(config.bridge, config.bridge.dims(sender_arch(senders), measured)),
        frozen=FrozenModels.of(known_as(sender, apart), receivers, prompts),
        sources=tokenizers_of(config.bridge, senders, tokenizers),
        receivers=tokenizers,
        fingerprints=prints | own,
        mesh=mesh,
        weights=weights | bare,
        models=models,
        same_model=others,
        nats=SenderNats(config, config.layout, there, session) if config.sender else None,
        apart=apart,
    )


def check_texts(
    layout: LayoutConfig,
    receivers: Mapping[str, Tokenizer],
    sources: Mapping[str, Tokenizer],
    groups: Sequence[Group],
) -> None:
    """Checks that what the models are given of some contexts is their text.

    Raises:
        UserError: a label, or what a source reads, is not right.
    """
    checked = [example for group in groups for example in group]
    for tokenizer in receivers.values():
        check_labels(layout, tokenizer, checked)
    for source in sources.values():
        check_reading(layout, source, checked)


def laid_out(pipeline: Pipeline, layout: LayoutConfig, groups: Sequence[Group]) -> Pipeline:
    """The same pipeline with another layout, whose labels are checked.

    Args:
        pipeline: the pipeline.
        layout: the receiver's sequence.
        groups: contexts whose labels are looked at.

    Raises:
        UserError: a label, or what a source reads, is not right.
    """
    check_texts(layout, pipeline.receivers, by_key(pipeline.sources), groups)
    prompts = tuple(prompts_of(layout, pipeline.receivers).items())
    frozen = pipeline.frozen.replace(prompts=prompts)  # type: ignore[attr-defined]
    return replace(pipeline, layout=layout, frozen=frozen)


def as_trained(
    run_dir: Path,
    prints: dict[str, str],
    models: Callable[[], dict[str, dict[str, str]]] | None,
    others: bool,
) -> dict[str, str]:
    """Fingerprints of receivers, as an exported bridge in that directory knows the same models.

    Args:
        run_dir: of a run, which knows them by their own, or of an exported bridge.
        prints: their own.
        models: makes what they are.
        others: whether they may be stored otherwise.

    Raises:
        UserError: one is stored otherwise, and may not be.
    """
    saved = about_bridge(run_dir) if is_exported(run_dir) else {}
    if "models" not in saved or models is None:
        return prints
    some = {name: one for name, one in models().items() if name in prints}
    return agreed(saved, prints, some, others, run_dir)


def open_sender(
    config: Config, layout: LayoutConfig, mesh: Mesh, session: Session
) -> tuple[dict[str, FrozenSpec], Sender | None, dict[str, str], dict[str, str]]:
    """Opens the sender of a run's source, if it reads one, and loads its first layers.

    Returns:
        The sender's spec by name, the loaded model or None, and by name its fingerprint, and that
        of its weights alone.

    Raises:
        UserError: the source cannot read it, or it cannot read what the layout asks for.
    """
    assert config.bridge is not None
    specs = {} if config.sender is None else {SENDER: session.open(SENDER, config.sender)}
    config.bridge.dims(sender_arch(specs), {})  # raises if a source cannot read the sender
    for spec in specs.values():
        source_head_ids(layout, spec.tokenizer)  # raises if there is no chat template
    sender = make_sender(config, specs, loading(session, mesh))
    return specs, sender, *prints_of(config, specs)


def sender_apart(sender: Sender | None, mesh: Mesh | None) -> SenderApart | None:
    """A sender on devices of its own, if there are some and it is on them."""
    return None if sender is None or mesh is None else SenderApart(sender, mesh)


def known_as(sender: Sender | None, apart: SenderApart | None) -> Sender | Elsewhere | None:
    """The sender as the programs of training and evaluation know it."""
    return sender if apart is None else apart.elsewhere


def loading(session: Session, mesh: Mesh) -> Make:
    """What loads a model's first layers in a session."""
    return lambda spec, layers, head: session.load(spec, mesh, layers, head)


def _fitting(
    layout: LayoutConfig, tokenizers: dict[str, Tokenizer], few: Sequence[Group], rows: Rows
) -> Sequence[Group]:
    """The contexts that the receivers are measured on: `few`, unless all of them are too long.

    Raises:
        UserError: all that are looked at are too long.
    """
    for groups in (few, sample(rows, MEASURED_ROWS)):
        one = [group[:1] for group in groups]
        lengths = measure(layout, None, tokenizers, one, layout.max_tokens)
        if lengths.long < lengths.contexts:
            if groups is few:
                return few
            fits = Collate(layout, None, tokenizers, lengths)(one)["valid"]
            return [group for group, fit in zip(groups, fits, strict=True) if fit][:RMS_ROWS]
    remark = length_remark(lengths, layout.max_tokens, len(rows), "to train on")
    assert remark is not None  # all are too long
    raise UserError(f"layout.max_tokens: {remark.text}")


def _receiver_rms(
    layout: LayoutConfig,
    frozen: dict[str, FrozenDecoder],
    tokenizers: dict[str, Tokenizer],
    groups: Sequence[Group],
) -> dict[str, ModelDims]:
    """Sizes and RMS of the receivers, measured on some contexts."""
    one = [group[:1] for group in groups]
    some = Collate(
        layout, None, tokenizers, measure(layout, None, tokenizers, one, layout.max_tokens)
    )(one)
    return {
        name: measure_rms(model, some[f"{name}/context/ids"], some[f"{name}/context/lengths"])
        for name, model in frozen.items()
    }
