"""The stage that compares methods on the same held-out rows (docs/design.md section 8)."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lw_jax.config.parse import to_dict
from lw_jax.data.example import Example, Group
from lw_jax.data.load import data_set, load_rows, origins, sample
from lw_jax.errors import UserError
from lw_jax.errors import said as said_of
from lw_jax.evaluate import (
    compression,
    examples,
    mean_latent,
    probe,
    relay,
    report,
    rescore,
    surprisal,
)
from lw_jax.evaluate import examples as rows
from lw_jax.evaluate.candidates import answering, candidates_of
from lw_jax.evaluate.compare import Comparison
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.figures import Asked, Said, data, figures
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.prediction_cache import PredictionCache, key_of
from lw_jax.evaluate.relay import Written
from lw_jax.mesh import put, replicated, ways
from lw_jax.models.fingerprint import FORMAT
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.spec import SENDER
from lw_jax.pipeline import Pipeline
from lw_jax.report import page
from lw_jax.report.board import write_evaluation
from lw_jax.report.read import MAPS, read
from lw_jax.runs import history, rivals
from lw_jax.runs.directory import Run
from lw_jax.runs.identity import attention_of, quants_of
from lw_jax.runs.rows import account_of, leaks, remarks_of
from lw_jax.runs.rows import report as say
from lw_jax.runs.session import CHECKED_ROWS, MEASURED_ROWS, laid_out, open_pipeline
from lw_jax.runs.trained import Trained, layout_at, load_trained
from lw_jax.text.collate import Lengths
from lw_jax.text.fit import length_remark
from lw_jax.text.layout import written
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import stop_strings, unwritable
from lw_jax.train.diagnostics import fired
from lw_jax.utils import files
from lw_jax.utils.provenance import provenance
from lw_jax.utils.signals import termination

MEAN_ROWS = 1024
"""Training contexts whose mean latent is the control `mean`."""
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers")


def run(run: Run, name: str, cfg: EvaluateConfig) -> None:
    """Run every method that is not done yet, then write metrics, predictions and the table.

    Raises:
        UserError: no rows, no trained bridge where one is needed, or other parameters than trained.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C; finished methods are kept.
    """
    layout = cfg.layout or layout_at(run.config, before=name)
    config = dataclasses.replace(run.config, layout=layout)
    pipeline = open_pipeline(config, run.mesh, run.run_dir, session=run.session)
    if cfg.ratio is not None:
        pipeline = dataclasses.replace(pipeline, bridge=pipeline.bridge.at_ratio(cfg.ratio))
    if cfg.view is not None:
        pipeline = dataclasses.replace(pipeline, bridge=pipeline.bridge.at_view(cfg.view))
    source = load_rows(cfg.data or run.config.data, "eval", cfg.seed)
    drawn = rows.choose(source, cfg.rows, cfg.seed)
    pipeline = laid_out(pipeline, layout, [(e,) for e in drawn[:CHECKED_ROWS]])
    tokenizers = pipeline.receivers.values()
    candidates = candidates_of(cfg, cfg.data or run.config.data, layout, drawn, tokenizers)
    groups: list[Group] = [(e,) for e in (*drawn, *answering(drawn, candidates))]
    collate = pipeline.collate(groups)
    bridges = [
        rivals.load(n, at, pipeline, groups, cfg.checkpoint, run.session)
        for n, at in cfg.rivals.items()
    ]
    examples = drawn
    for readers in (collate, *(other.collate for other in bridges)):
        examples = rows.usable(examples, readers)
    left = Lengths(contexts=len(drawn), long=len(drawn) - len(examples))
    remarks = [*remarks_of(source), *leaks(run.config, name, source)]
    found = [*remarks, length_remark(left, layout.max_tokens, len(drawn), "to evaluate")]
    say(run.console, f"stages.{name}", found)
    if left.long and len({e.context_id for e in examples}) < 2:
        raise UserError(
            f"layout.max_tokens: {left.long} of {len(drawn)} rows are longer, and one context is "
            "left, which cannot be compared with another; raise it, or evaluate more rows"
        )
    wanted = [method(n) for n in cfg.all_methods]
    trained = None
    if any(m.needs_bridge for m in wanted):
        trained = load_trained(
            run.config, run.run_dir, pipeline, cfg.checkpoint, before=name, init_from=cfg.init_from
        )
    other = rows.others(examples) if any(m.latent == "other" for m in wanted) else []
    others = [examples[i] for i in other]
    near, counted = _near(cfg, examples)
    data_config = data_set(cfg.data or run.config.data)
    stop = stop_strings(cfg.decode.stop, data_config, layout)
    key = key_of(
        asdict(cfg.decode),
        [cfg.seed, cfg.view or cfg.ratio, rows.digest(examples), candidates, stop],
        asdict(layout),
        asdict(cfg.relay),
        pipeline.fingerprints,
        None if trained is None else trained.digest,
        {g.name: [g.trained.digest, asdict(g.pipeline.layout)] for g in bridges},
    )
    warnings = _unlike_training(layout, trained)
    warnings += [f"WARNING data: {one.text}" for one in remarks if one.level == "warning"]
    short = {
        n: unwritable(layout, t, examples, cfg.decode.max_new_tokens, stop)
        for n, t in pipeline.receivers.items()
    }
    cannot = [
        f"WARNING {n}: {one.words(n, cfg.decode.max_new_tokens, stop)}"
        for n, one in short.items()
        if one.count
    ]
    for line in cannot:  # at once, and again beside the figures
        run.console.print(line, markup=False, highlight=False, soft_wrap=True)
    out = _directory(run, name)
    partial = PredictionCache(out / "partial", key, len(examples))
    # By default a GPU rounds float32 factors to ten bits: enough to part scorer and decoder.
    with termination() as terminated, jax.default_matmul_precision("highest"):
        compared = Comparison(
            pipeline,
            cfg,
            examples,
            other,
            collate,
            run.console,
            terminated,
            candidates,
            stop=stop,
            near=near,
        )
        if any(m.surprisal for m in wanted):
            compared = dataclasses.replace(compared, nats=_surprisal(run, compared, layout))
        if trained is not None:
            first, codecs = next(iter(pipeline.receivers)), [m.codec for m in wanted if m.codec]
            compared = compared.sent(
                _context(compared, trained, first),
                trained.mark,
                codecs,
                look="latent" in cfg.methods,
            )
        mean = None
        if trained is not None and any(m.mean for m in wanted):
            mean = _mean(run, compared, trained, cfg)
        relayed = None
        if any(m.relayed for m in wanted):
            written_by = partial.load_written() or _relay(run, compared, layout, partial)
            relayed = compared.relayed(written_by)
        said, packed = _compare(compared, trained, mean, partial, relayed, bridges)
        slots, maps, rescored = {}, [], None
        if trained is not None and "latent" in cfg.methods:
            ctxs = {r: _context(compared, trained, r) for r in pipeline.receivers}
            slots = {r: compared.slots(ctx) for r, ctx in ctxs.items()}
            maps = compared.slot_maps(next(iter(ctxs.values())))
            answers = {r: [p.text for p in said[r]["latent"][0]] for r in ctxs}
            rescored = rescore.together(compared, ctxs, answers)
    how = cfg.seed, cfg.bootstrap, data_config.ends_in_number
    probed = _probe(run, pipeline, cfg, Asked(examples, others, *how))
    # What the receiver is to write is what its output is held against.
    examples, others = ([written(layout, e) for e in some] for some in (examples, others))
    asked = Asked(examples, others, *how, counted)
    measured = figures(asked, said, rescored, tuple(cfg.rivals), cfg.normalised)
    for receiver, methods in measured["receivers"].items():
        if receiver in slots:
            methods["latent"]["slots"] = slots[receiver]
        for line, found in methods.items():
            if line in cfg.rivals or not method(line).relayed:
                continue
            reading = found["seconds"]
            found |= {
                "seconds_writing": written_by.seconds,
                "seconds_reading": reading,
                "seconds": written_by.seconds + reading,
            }
    trained_in = run.run_dir if cfg.init_from is None else Path(cfg.init_from)
    metrics = {
        **measured,
        "alarms": fired(trained_in / "diagnostics.jsonl"),
        **({} if probed is None else {"probe": probed}),
        "compression": packed,
        "parameters": {} if trained is None else trained.to_json(),
        **({"rivals": {g.name: g.trained.to_json() for g in bridges}} if bridges else {}),
        "config": to_dict(run.config),
        "warnings": warnings,
        "stage": name,
        "versions": versions(),
        "data": data(asked, len(drawn) - len(examples), source.malformed, candidates)
        | account_of(source)
        | {"origins": origins(data_config, run.config.data)},
        "decode": {
            "max_new_tokens": cfg.decode.max_new_tokens,
            "stop": list(stop),
            "unwritable": {n: one.count for n, one in short.items()},
        },
        "format": FORMAT,
        "fingerprints": pipeline.fingerprints,
        "attention": attention_of(pipeline),
    }
    quants = quants_of(config)
    if quants:
        metrics["quant"] = quants
    texts = () if relayed is None else written_by.texts
    files.write_lines(
        out / "predictions.jsonl", report.predictions(examples, said, texts, rescored, counted)
    )
    files.write_json(out / "metrics.json", metrics)
    history.add(run.run_dir, report.history(run.out_dir.name, metrics), run.call)
    files.write_json(out / MAPS, {"texts": maps})
    report.show(run.console, metrics)
    for line in (*warnings, *cannot):
        compared.say(line)
    partial.remove()
    if out == run.out_dir:
        _to_look_at(run, compared)


def _to_look_at(run: Run, compared: Comparison) -> None:
    """The page of the run, and events where its stages write some. Figures are written by then: a
    page that cannot be made is said, and costs nothing else."""
    config = to_dict(run.config)
    try:
        compared.say(f"to look at: {page.write(run.out_dir, config)}")
    except Exception as error:
        compared.say(f"WARNING {page.FILE} could not be made: {said_of(error)}")
    trained = (stage.train for stage in run.config.stages.values())
    if any(stage is not None and stage.tensorboard for stage in trained):
        write_evaluation(read(run.out_dir, config), run.out_dir)


def versions() -> dict[str, str]:
    """Of Python, of this code (with its commit, if it is a checkout), of the packages that matter,
    and the device."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return {
        "python": platform.python_version(),
        **provenance(),
        **found,
        "device": jax.devices()[0].device_kind,
    }


def lost(run: Run, name: str, cfg: EvaluateConfig) -> str | None:
    """Whether the finished stage's figures or predictions are gone.

    Raises:
        UserError: they are damaged.
    """
    out = _directory(run, name)
    metrics, predictions = out / "metrics.json", out / "predictions.jsonl"
    for path in (metrics, predictions):
        if not path.is_file():
            return f"done already, but {path} is gone; evaluated again"
    files.read_json(metrics, dict)
    _, bad = files.read_lines(predictions)
    if bad:
        raise files.damaged(predictions, f"{bad} lines are no JSON objects")
    return None


def _directory(run: Run, name: str) -> Path:
    """The run's directory for its last evaluation, a folder in it for those before."""
    kept = [n for n, stage in run.config.stages.items() if stage.evaluate is not None]
    return run.out_dir if name == kept[-1] else run.out_dir / name


def _context(
    compared: Comparison, trained: Trained | None, receiver: str, mean: Any = None
) -> EvalContext:
    pipeline = compared.pipeline
    params = None if trained is None else trained.params
    return EvalContext(pipeline.frozen, params, mean, pipeline.bridge, receiver)


def _unlike_training(layout: LayoutConfig, trained: Trained | None) -> list[str]:
    """A line if the sequence is not the one that the bridge was trained with (fault 4)."""
    if trained is None or trained.layout is None:
        return []
    changed = [f"{k} {a!r} -> {b!r}" for k, (a, b) in layout.differs(trained.layout).items()]
    if not changed:
        return []
    return [f"WARNING layout: not the one trained with: {', '.join(changed)}"]


def _mean(run: Run, compared: Comparison, trained: Trained, cfg: EvaluateConfig) -> Any:
    """The mean slots on the mesh: as measured with these parameters before, or measured now.

    Of as many training texts as are evaluated, up to MEAN_ROWS.
    """
    pipeline = compared.pipeline
    count = min(MEAN_ROWS, len(compared.examples))
    measured = mean_latent.key_of(trained.digest, cfg.view or cfg.ratio, pipeline.layout, count)
    slots = mean_latent.load(run.run_dir, measured, pipeline.fingerprints)
    if slots is None:
        training = load_rows(run.config.data, "train", run.config.seed)
        groups = sample(training, count)
        lengths = pipeline.lengths(groups)
        if lengths.long == lengths.contexts:  # all of these: others may be shorter
            more = [group[:1] for group in sample(training, MEASURED_ROWS)]
            fits = pipeline.collate(more)(more)["valid"]
            groups = [g for g, fit in zip(more, fits, strict=True) if fit][:count] or groups
        receiver = next(iter(pipeline.receivers))
        slots = mean_latent.measure(
            _context(compared, trained, receiver),
            groups,
            pipeline.collate(groups),
            pipeline.placed,
            compared.size,
            ways(pipeline.mesh, "rows"),
        )
        mean_latent.save(run.run_dir, measured, slots, pipeline.fingerprints)
    return put(slots, replicated(pipeline.mesh))


def _near(
    cfg: EvaluateConfig, examples: Sequence[Example]
) -> tuple[list[int | None], dict[str, list[int]]]:
    """Row by row the row of another context of its article, and by the methods that use it the
    rows that have one.

    Raises:
        UserError: no row has one.
    """
    names = cfg.of_articles
    if not names:
        return [], {}
    near = rows.near(examples)
    counted = [row for row, other in enumerate(near) if other is not None]
    if not counted:
        raise UserError(
            f"methods: {names[0]} needs several contexts of one article, and no two of these "
            f"{len(examples)} rows have that; evaluate more rows, or leave it out"
        )
    return near, dict.fromkeys(names, counted)


def _surprisal(run: Run, compared: Comparison, layout: LayoutConfig) -> list[surprisal.Spans]:
    """The nats of every text's tokens under the sender, which is loaded whole and let go of."""
    sender = run.config.sender
    assert sender is not None  # the config was checked
    spec = run.session.open(SENDER, sender)
    model = run.session.load(spec, compared.pipeline.sender_mesh)
    assert isinstance(model, FrozenDecoder)  # the config was checked
    return surprisal.of_texts(layout, model, spec.tokenizer, compared.texts(), compared.size)


def _relay(
    run: Run, compared: Comparison, layout: LayoutConfig, partial: PredictionCache
) -> Written:
    """What the sender writes, kept in case the evaluation is stopped."""
    sender, cfg = run.config.sender, compared.config
    assert sender is not None  # the config was checked
    spec = run.session.open(SENDER, sender)
    # whole; let go of when it has written
    model = run.session.load(spec, compared.pipeline.sender_mesh)
    assert isinstance(model, FrozenDecoder)  # the config was checked
    found = relay.written(
        cfg.relay, layout, model, spec.tokenizer, compared.examples, compared.size
    )
    partial.save_written(found)
    compared.say(f"sender: wrote {len(found.texts)} texts in {found.seconds:.1f} s")
    return found


def _probe(
    run: Run, pipeline: Pipeline, cfg: EvaluateConfig, asked: Asked
) -> dict[str, Any] | None:
    """Linear probes of the frozen models, on the rows that the methods were given."""
    if cfg.probe is None:
        return None
    source = load_rows(cfg.data or run.config.data, "train", run.config.seed)
    train = examples.choose(source, cfg.probe.rows, cfg.seed)
    if pipeline.layout.max_tokens is not None:
        train = examples.usable(train, pipeline.collate([(e,) for e in train]))
    if not train:
        raise UserError(
            "layout.max_tokens: all training rows are longer, and the probe needs some; raise it"
        )
    return probe.probe(pipeline, cfg.probe, train, asked, cfg.batch_size)


def _compare(
    compared: Comparison,
    trained: Trained | None,
    mean: Any,
    partial: PredictionCache,
    relayed: Comparison | None,
    bridges: Sequence[rivals.Rival],
) -> tuple[Said, dict[str, Any]]:
    """All methods of all receivers, those of other bridges last, and what the message costs."""
    said: dict[str, dict[str, Any]] = {}
    packed: dict[str, Any] = {}
    texts, bridged = compared.texts(), compared.pipeline.bridge
    ctxs = {r: _context(compared, trained, r, mean) for r in compared.pipeline.receivers}
    own = compared.config.all_methods
    places = {n: relayed if relayed and method(n).relayed else compared for n in own}
    places |= {g.name: g.comparison(compared) for g in bridges}
    others = {(r, g.name): _context(places[g.name], g.trained, r) for r in ctxs for g in bridges}

    kept = {(r, n): partial.load(r, n) for r in ctxs for n in places}
    todo = [(others.get((r, n), ctxs[r]), n) for (r, n), found in kept.items() if found is None]
    for g in bridges:
        mine = [ctx for ctx, name in todo if name == g.name]
        if mine:
            places[g.name] = places[g.name].sent(mine[0], g.trained.mark, [])
    for one in {id(place): place for place in places.values()}.values():
        one.compile([(ctx, name) for ctx, name in todo if places[name] is one])
    for receiver, ctx in ctxs.items():
        if compared.packets is not None:
            held = compared.held(ctx)
            adapters = compression.Adapters(
                held.keys.tolist(), int(held.layers), held.entries.tolist()
            )
            packed["latent"] = compression.of_texts(
                texts,
                compared.packets.counts,
                bridged.config.latent_dim,
                bridged.codec,
                bridged.levels,
                bridged.config.private > 0,
                {codec: compared.packets.sizes(codec) for codec in compared.packets.by_codec},
            )
            packed.setdefault("receivers", {})[receiver] = compression.of_columns(
                texts,
                compared.tokens(receiver),
                held.columns.tolist(),
                ctx.model.arch,
                adapters,
            )
        said[receiver] = {}
        for name, place in places.items():
            found, when = kept[receiver, name], ", before it was stopped"
            if found is None:
                found = place.run(others.get((receiver, name), ctx), name)
                when = ""
                partial.save(receiver, name, *found)
            said[receiver][name] = found
            compared.say(f"{receiver} {name}: {len(texts)} rows in {found[1]:.1f} s{when}")
    return said, packed
