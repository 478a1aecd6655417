"""What every stage of a run works with: the frozen models, their layout, their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import SOURCE
from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.data.example import Group, Rows
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate.surprisal import of_texts
from lw_jax.models.checkpoint import read_arch, small_files
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import ModelDims
from lw_jax.models.fingerprint import FORMAT
from lw_jax.models.frozen import Frozen, FrozenDecoder, FrozenModels, Sender
from lw_jax.models.spec import SENDER, FrozenSpec, open_model
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
from lw_jax.text.budget import Spans
from lw_jax.text.collate import Collate, by_key, measure
from lw_jax.text.fit import length_remark
from lw_jax.text.layout import check_labels, check_reading, prompts_of, source_head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

MEASURED_ROWS = 2048
"""Number of contexts whose token lengths decide the static lengths of a batch."""
RMS_ROWS = 32
"""Number of contexts on which the receivers' RMS is measured."""
CHECKED_ROWS = 64
"""Number of contexts whose labels are checked at start-up."""
NATS_ROWS = 64
"""Texts that the whole sender reads at once for their nats."""


def identity(config: Config, name: str, pipeline: Pipeline) -> dict[str, Any]:
    """What a resumed stage must share: the config up to this stage, and the frozen models."""
    plain = to_dict(config)
    names = list(plain["stages"])
    plain["stages"] = {n: plain["stages"][n] for n in names[: names.index(name) + 1]}
    return {
        "config": plain,
        "format": FORMAT,
        "fingerprints": pipeline.fingerprints,
        "weights": pipeline.weights,
        "attention": attention_of(pipeline),  # is recorded, and may differ
    }


def attention_of(pipeline: Pipeline) -> dict[str, str]:
    """The attention implementation that each loaded model uses, by its name."""
    frozen = pipeline.frozen
    sender = {} if frozen.sender is None else {SENDER: frozen.sender.attention}
    return sender | {name: model.attention for name, model in frozen.receivers.items()}


def quants_of(config: Config) -> dict[str, str]:
    """How the matrices of each model are stored, of those that are not stored in full."""
    return {name: m.quant for name, m in _models_of(config).items() if m.quant != "none"}


def depends_on(config: Config, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """What the numbers of the frozen models depend on, besides the tokens: those of the source by
    `source`, those of the receivers by their names."""
    models = _models_of(config)
    attention = attention_of(pipeline)
    found = {
        name: {
            "model": pipeline.fingerprints[name],
            "dtype": model.dtype,
            "quant": model.quant,
            "attention": attention.get(name),
        }
        for name, model in models.items()
    }
    views = pipeline.bridge.config.views
    read = {one.reads_receiver or (SENDER if one.reads_sender else None) for one in views.values()}
    source = {
        "views": {name: repr(one) for name, one in views.items()},
        "models": {name: found[name] for name in sorted(filter(None, read))},
    }
    return found | {SOURCE: source}


class Session:
    """The frozen models of a run: each is opened once and loaded once, for all of its stages.

    It keeps what the first stage that used a model needed: a sender's layers up to the highest tap,
    receivers complete. A stage that needs more of a model (`relay` the complete sender) gets it
    with the missing layers read, and the session does not keep those.
    """

    def __init__(self) -> None:
        self._specs: dict[tuple[str, ModelConfig], FrozenSpec] = {}
        self._models: dict[tuple[str, ModelConfig, Mesh], Frozen] = {}

    def open(self, name: str, config: ModelConfig) -> FrozenSpec:
        """A model of the run, or the sender of another bridge; see `open_model`.

        Args:
            name: `sender`, or the receiver's name.
            config: where its files are, and how its weights are stored.

        Raises:
            UserError: anything wrong with the model, in one line.
        """
        if (name, config) not in self._specs:
            self._specs[name, config] = open_model(name, config)
        return self._specs[name, config]

    def load(
        self, spec: FrozenSpec, mesh: Mesh, layers: int | None = None, head: bool = True
    ) -> Frozen:
        """A model with at least these layers; see `FrozenSpec.load`.

        Args:
            spec: the model.
            mesh: the device mesh.
            layers: number of layers, from the first on; None: all.
            head: whether the output head is needed.

        Raises:
            UserError: anything wrong with the weights, in one line.
        """
        key = spec.name, spec.config, mesh
        have = self._models.get(key)
        if have is None:
            self._models[key] = have = spec.load(mesh, layers, head)
        if spec.holds(have, layers, head):
            return have
        return spec.load(mesh, layers, head, have)

    def begin(self, config: Config, kind: str) -> None:
        """Releases what a stage does not need.

        Args:
            config: config of the run.
            kind: kind of the stage. `pretrain` needs no frozen model, and may write one that a
                later stage reads; the others need the config's models, but no other bridge's
                sender.
        """
        own = {(name, model) for name, model in _models_of(config).items()}
        if kind == "pretrain":
            own = set()
            self._specs.clear()
        self._models = {key: model for key, model in self._models.items() if key[:2] in own}


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
    senders, sender, prints, weights = _open_sender(config, config.layout, mesh, session)
    specs = {name: session.open(name, model) for name, model in config.receivers.items()}
    tokenizers = {name: spec.tokenizer for name, spec in specs.items()}
    prompts = prompts_of(config.layout, tokenizers)
    own, bare = prints_of(config, specs)
    models = partial(about_models, config, senders | specs)
    others = config.fingerprint == "same_model"
    measured = None
    if run_dir is not None:
        measured = receiver_rms.load(run_dir, _as_trained(run_dir, own, models, others), bare)
    if measured is None and not rows and run_dir is not None and receiver_rms.known(run_dir):
        raise UserError(
            f"{run_dir}: its bridge belongs to other receivers than {', '.join(own)} with these "
            "weights, tokenizers and chat templates; use the models of the run"
        )
    receivers = make_receivers(config, specs, _loading(session, mesh))
    if rows or measured is None:
        training = load_rows(config.data, "train", config.seed)
        groups = sample(training, CHECKED_ROWS)
        checked = [e for group in groups for e in group]
        for tokenizer in tokenizers.values():
            check_labels(config.layout, tokenizer, checked)
        for source in by_key(tokenizers_of(config.bridge, senders, tokenizers)).values():
            check_reading(config.layout, source, checked)
        if measured is None:
            layout = replace(config.layout, text_budget=None)  # whole texts, as for the bridge
            fitting = _fitting(layout, tokenizers, groups[:RMS_ROWS], training)
            measured = _receiver_rms(layout, receivers, tokenizers, fitting)
        if run_dir is not None and rows:
            receiver_rms.save(run_dir, measured, own)
    return Pipeline(
        layout=config.layout,
        bridge=Bridge(config.bridge, config.bridge.dims(sender_arch(senders), measured)),
        frozen=FrozenModels.of(sender, receivers, prompts),
        sources=tokenizers_of(config.bridge, senders, tokenizers),
        receivers=tokenizers,
        fingerprints=prints | own,
        mesh=mesh,
        weights=weights | bare,
        models=models,
        same_model=others,
        nats=SenderNats(config, config.layout, mesh, session) if config.sender else None,
    )


def laid_out(pipeline: Pipeline, layout: LayoutConfig, groups: Sequence[Group]) -> Pipeline:
    """The same pipeline with another layout, whose labels are checked.

    Args:
        pipeline: the pipeline.
        layout: the receiver's sequence.
        groups: contexts whose labels are looked at.

    Raises:
        UserError: a label, or what a source reads, is not right.
    """
    checked = [example for group in groups for example in group]
    for tokenizer in pipeline.receivers.values():
        check_labels(layout, tokenizer, checked)
    for source in by_key(pipeline.sources).values():
        check_reading(layout, source, checked)
    prompts = tuple(prompts_of(layout, pipeline.receivers).items())
    frozen = pipeline.frozen.replace(prompts=prompts)  # type: ignore[attr-defined]
    return replace(pipeline, layout=layout, frozen=frozen)


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
        senders, sender, prints, weights = _open_sender(config, config.layout, mesh, session)
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
    receivers = make_receivers(config, specs, _loading(session, mesh))
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
    known = _as_trained(run_dir, own, pipeline.models, pipeline.same_model)
    measured = receiver_rms.load(run_dir, known, bare)
    if measured is None:
        raise UserError(
            f"{run_dir}: its receivers are not {', '.join(own)} with the same weights, "
            "so it cannot read the same rows"
        )
    session = Session() if session is None else session
    senders, sender, prints, weights = _open_sender(config, layout, pipeline.mesh, session)
    prompts = prompts_of(layout, pipeline.receivers)

    def models() -> dict[str, dict[str, str]]:
        shared = {} if pipeline.models is None else pipeline.models()
        kept = {name: one for name, one in shared.items() if name in own}
        return kept | about_models(config, senders)

    return replace(
        pipeline,
        layout=layout,
        bridge=Bridge(config.bridge, config.bridge.dims(sender_arch(senders), measured)),
        frozen=FrozenModels.of(sender, pipeline.frozen.receivers, prompts),
        sources=tokenizers_of(config.bridge, senders, pipeline.receivers),
        fingerprints=prints | own,
        weights=weights | bare,
        models=models,
        nats=SenderNats(config, layout, pipeline.mesh, session) if config.sender else None,
    )


def _as_trained(
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


class SenderNats:
    """From messages in words to the nats of the sender's tokens in each; every text is read once.

    A text that is too long for the layout has none.
    """

    def __init__(self, config: Config, layout: LayoutConfig, mesh: Mesh, session: Session) -> None:
        assert config.sender is not None  # the caller looked
        self.sender, self.layout, self.mesh, self.session = config.sender, layout, mesh, session
        self._known: dict[str, Spans] = {}

    def __call__(self, texts: Sequence[str]) -> dict[str, Spans]:
        """The nats of some messages; the sender is loaded whole for new ones, and let go of."""
        new = [text for text in texts if text not in self._known]
        if new:
            spec, limit = self.session.open(SENDER, self.sender), self.layout.max_tokens
            sizes = [len(ids) for ids in spec.tokenizer.encode_all(new)]
            self._known |= dict.fromkeys(new, ())
            short = [t for t, n in zip(new, sizes, strict=True) if limit is None or n <= limit]
            model = self.session.load(spec, self.mesh)
            assert isinstance(model, FrozenDecoder)  # the config was checked
            rows = min(NATS_ROWS, max(1, len(short)))
            found = of_texts(self.layout, model, spec.tokenizer, short, rows) if short else []
            self._known |= {
                text: np.asarray(spans, np.float32)
                for text, spans in zip(short, found, strict=True)
            }
        return {text: self._known[text] for text in texts}


def _open_sender(
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
    sender = make_sender(config, specs, _loading(session, mesh))
    return specs, sender, *prints_of(config, specs)


def _loading(session: Session, mesh: Mesh) -> Make:
    return lambda spec, layers, head: session.load(spec, mesh, layers, head)


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


def _models_of(config: Config) -> dict[str, ModelConfig]:
    """The frozen models that a config names."""
    return ({} if config.sender is None else {SENDER: config.sender}) | config.receivers


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
        name: measure_rms(
            model,
            jnp.asarray(some[f"{name}/context/ids"]),
            jnp.asarray(some[f"{name}/context/lengths"]),
        )
        for name, model in frozen.items()
    }
