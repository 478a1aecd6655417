"""Checks of a config before it costs anything: models, tokenizers, rows, mesh, memory.

`check` runs before every run and raises the first error; `--doctor` shows all findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lw_jax.bridge import engines
from lw_jax.bridge.config import closed_form
from lw_jax.config.schema import Config, StageConfig
from lw_jax.data.example import Example, Rows
from lw_jax.data.load import data_set, load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate.candidates import candidates_of
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.methods import method
from lw_jax.mesh import make_mesh, mesh_shape
from lw_jax.models.config import ModelConfig
from lw_jax.models.dims import sizes
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.models.spec import SENDER, FrozenSpec
from lw_jax.runs.abstract import abstract_models, abstract_step, size_in_bytes
from lw_jax.runs.directory import run_directory
from lw_jax.runs.frozen import sender_arch, sender_layers, tokenizers_of
from lw_jax.runs.memory import (
    RelayNeed,
    address_space,
    device_memory,
    estimate,
    host_memory,
    in_words,
    settled,
)
from lw_jax.runs.ready import check_free, check_parts, check_start, check_trains, traced
from lw_jax.runs.rows import beyond_models, leaks, lengths_of, levels_of, remarks_of
from lw_jax.runs.session import CHECKED_ROWS, Session
from lw_jax.runs.trained import is_fitted, layout_at, still_to_train
from lw_jax.text.collate import Collate, Lengths, by_key, measure
from lw_jax.text.layout import check_labels, check_reading
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import stop_strings, unwritable
from lw_jax.train import board
from lw_jax.train.config import TrainConfig
from lw_jax.utils.registry import chosen


@dataclass(frozen=True)
class Finding:
    """One finding about a config.

    Attributes:
        level: whether the run can go on.
        key: key of the config.
        text: what was found.
    """

    level: Literal["ok", "warning", "error"]
    key: str
    text: str


@dataclass
class Examination:
    """Everything that is found out about a config on the way.

    Attributes:
        config: the config.
        session: opens its models.
        findings: findings so far.
        specs: the models that could be opened, by name.
        groups: rows of the stages: training rows, if there are any.
        asked: rows of every evaluate stage.
        loaded: all rows that were read, by stage, with the key of the data and what they are for.
        sizes: static lengths that hold the rows, as `lw_jax.text.collate.measure` gives them.
    """

    config: Config
    session: Session
    findings: list[Finding] = field(default_factory=list)
    specs: dict[str, FrozenSpec] = field(default_factory=dict)
    groups: list[Any] = field(default_factory=list)
    asked: dict[str, list[Any]] = field(default_factory=dict)
    loaded: list[tuple[str, str, str, Rows]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def note(self, level: Literal["ok", "warning", "error"], key: str, text: str) -> None:
        """Adds a finding, once: several stages may find the same."""
        text = text.removeprefix(f"{key}: ")
        if Finding(level, key, text) not in self.findings:
            self.findings.append(Finding(level, key, text))

    @contextmanager
    def trying(self, key: str) -> Iterator[None]:
        """Turns a UserError inside into a finding."""
        try:
            yield
        except UserError as error:
            self.note("error", key, str(error))

    @property
    def sound(self) -> bool:
        """Whether no error has been found."""
        return all(f.level != "error" for f in self.findings)


def check(config: Config, session: Session | None = None) -> list[Finding]:
    """Raises the first error that `examine` finds, without the estimate of memory.

    Args:
        config: config of the run.
        session: session of the run, which keeps the models that are opened here; None: a new one.

    Returns:
        All findings.

    Raises:
        UserError: anything wrong that can be known before the run.
    """
    findings = examine(config, memory=False, session=session)
    for finding in findings:
        if finding.level == "error":
            text = finding.text
            raise UserError(
                text
                if text.startswith((f"{finding.key}:", f"{finding.key}."))
                else f"{finding.key}: {text}"
            )
    return findings


def examine(
    config: Config,
    memory: bool = True,
    session: Session | None = None,
    directory: bool = False,
) -> list[Finding]:
    """All findings.

    Args:
        config: config of the run.
        memory: whether the steps are compiled, to say how much memory they need.
        session: session of the run, which keeps the models that are opened here; None: a new one.
        directory: whether the run directory is looked at.
    """
    return examined(config, memory, session, directory).findings


def examined(
    config: Config,
    memory: bool = True,
    session: Session | None = None,
    directory: bool = False,
) -> Examination:
    """The same as `examine`, with all that was found on the way."""
    seen = Examination(config, session or Session())
    if directory:
        with seen.trying("run_dir"):
            check_free(config)
            seen.note("ok", "run_dir", str(run_directory(config)))
    with seen.trying("mesh"):
        shape = mesh_shape(config.mesh, jax.device_count())
        of_each = " x ".join(map(str, shape))
        seen.note("ok", "mesh", f"{of_each} of {jax.device_count()} devices")
        _batches(seen, shape[0] * shape[1])
    if limit := address_space():
        text = (
            f"a process may have {in_words(limit)} of addresses here (ulimit -v), and the memory "
            f"is {in_words(host_memory())}: where it needs more it ends without a message "
            "(std::bad_alloc, SIGABRT); raise the limit"
        )
        seen.note("warning", "memory", text)
    if config.sender is not None:
        _model(seen, SENDER, config.sender)
    for name, model in config.receivers.items():
        _model(seen, name, model)
    _schedules(seen)
    for name, stage in config.stages.items():
        if stage.train is not None and stage.train.tensorboard:
            with seen.trying(f"stages.{name}.train.tensorboard"):
                board.check()
    if config.bridge is not None and (config.sender is None or SENDER in seen.specs):
        with seen.trying("bridge"):
            known = {n: sizes(seen.specs[n].arch) for n in config.receivers if n in seen.specs}
            dims = config.bridge.dims(sender_arch(seen.specs), known)
            for name in config.bridge.views:
                one = dims.of_view(name)
                text = f"{one.taps} taps of width {one.source_width}"
                key = f"bridge.sources.{name}" if config.bridge.sources else "bridge.source"
                seen.note("ok", key, text if one.taps else "the text itself, no sender")
                _taps(seen, key, name)
            seen.note("ok", "bridge.reader", engines.summary(config.bridge, config.layout))
        if SENDER in seen.specs and seen.sound:
            with seen.trying("sender.path"):
                _needed(seen, seen.specs[SENDER].check_files)
    _rows(seen)
    if config.bridge is not None and seen.sound:
        _lengths(seen)
    if config.bridge is not None and seen.sound and seen.groups:
        _layout(seen)
        if seen.sound:
            _shapes(seen, steps=not memory)
        if seen.sound:
            _starts(seen)
        if memory and seen.sound:
            _memory(seen)
    if memory:
        _weights(seen)
    return seen


def report(findings: list[Finding], console: Console) -> int:
    """Prints the findings.

    Returns:
        The exit code.
    """
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for found in findings:
        table.add_row(Text(found.level, colours[found.level]), Text(found.key), Text(found.text))
    console.print(table)
    errors = sum(f.level == "error" for f in findings)
    console.print(
        Text(f"{errors} error{'s' * (errors != 1)}" if errors else "ready to run", "bold")
    )
    return 2 if errors else 0


def _taps(seen: Examination, key: str, view: str) -> None:
    """Warns of a source that reads only the first layers of a deep sender."""
    arch = sender_arch(seen.specs)
    assert seen.config.bridge is not None
    source = seen.config.bridge.views[view]
    if arch is None or not source.reads_sender:
        return
    highest = source.sender_layers(arch)
    if 0 < highest < arch.layers / 4:
        seen.note(
            "warning",
            key,
            f"the highest tap is after {highest} of the sender's {arch.layers} layers; higher ones "
            "usually carry more: name others, or set `of` to the depth that `layers` is meant for",
        )


def _schedules(seen: Examination) -> None:
    """Warns of ramps that are longer than their stage."""
    for name, stage in seen.config.stages.items():
        for kind in ("train", "pretrain"):
            cfg = getattr(stage, kind)
            if cfg is None:
                continue
            named = {f"stages.{name}.{kind}.optimiser": cfg.optimiser.schedule}
            if kind == "train":
                key = f"stages.{name}.train.objectives" if cfg.objectives else "objectives"
                parts = chosen(cfg.objectives or seen.config.objectives)
                named |= {f"{key}.{n}": c.schedule for n, c in parts.items()}
            for key, schedule in named.items():
                if schedule.ramp > cfg.steps:
                    seen.note(
                        "warning",
                        f"{key}.schedule.ramp",
                        f"{schedule.ramp} steps in a stage of {cfg.steps}: the factor rises to "
                        f"{schedule.highest(cfg.steps):.2g} and no higher",
                    )


def _shapes(seen: Examination, steps: bool) -> None:
    """Checks that the bridge's parts, objectives and optimiser of every train stage fit.

    Args:
        seen: the examination.
        steps: whether the steps of stages that do not come first are traced as well; the first
            stage's own step comes soon enough, and a compiled step is traced anyway.
    """
    for i, (name, stage) in enumerate(seen.config.stages.items()):
        bridge = seen.config.bridge
        if stage.calibrate is not None and bridge is not None and closed_form(bridge) is not None:
            with seen.trying("bridge"):
                check_parts(seen.config, seen.specs)
        if stage.train is not None:
            key = f"stages.{name}.train"
            mesh = make_mesh(seen.config.mesh)
            with seen.trying(key):
                traced(seen.config, stage.train, seen.specs, seen.sizes, mesh, steps and i > 0)


def _starts(seen: Examination) -> None:
    """Checks the bridges that stages start from, and that evaluations have one."""
    config, trained = seen.config, False
    mesh = make_mesh(config.mesh)
    for name, stage in config.stages.items():
        for kind, cfg in chosen(stage).items():
            start = getattr(cfg, "init_from", None)
            if start is not None:
                key = f"stages.{name}.{kind}.init_from"
                with seen.trying(key):
                    only = getattr(cfg, "init_only", ())
                    check_start(config, start, only, seen.specs, mesh)
            trained = trained or kind == "train" or is_fitted(config, before=name)
            if kind == "evaluate" and start is None and not trained:
                later = next((s.train for s in config.stages.values() if s.train), None)
                if any(method(n).needs_bridge for n in cfg.all_methods) and (
                    later is None or later.init_from is None
                ):
                    text = "no train stage before it, and `latent` needs a trained bridge"
                    text += still_to_train(config)
                    seen.note("error", f"stages.{name}.evaluate", text)


def _batches(seen: Examination, rows: int) -> None:
    """Checks that every batch divides over the mesh's rows."""
    for name, stage in seen.config.stages.items():
        for kind, cfg in _batched(stage):
            count = cfg.batch_size // getattr(cfg, "accumulate", 1)
            if count % rows:
                seen.note(
                    "error",
                    f"stages.{name}.{kind}.batch_size",
                    f"{count} rows at once do not divide over {rows} devices; "
                    f"use a multiple of {rows}, or change mesh.data or mesh.fsdp",
                )


def _batched(stage: StageConfig) -> Iterator[tuple[str, Any]]:
    """What a stage makes batches for, by key below the stage."""
    for kind, cfg in chosen(stage).items():
        each = cfg.each() if kind == "train" else {None: cfg}
        yield from ((kind if n is None else f"{kind}.tasks.{n}", own) for n, own in each.items())


def _model(seen: Examination, name: str, model: ModelConfig) -> None:
    """Checks that a model can be opened and that its weights are there."""
    key = name if name == SENDER else f"receivers.{name}"
    with seen.trying(f"{key}.path"):
        spec = seen.session.open(name, model)
        if Path(model.path).expanduser().exists() and model.random_weights is None:
            spec.check_files() if name != SENDER else spec.files()
        seen.specs[name] = spec
        arch = spec.arch
        ends = (
            f"encoder of at most {arch.max_positions} tokens"
            if isinstance(arch, EncoderArch)
            else f"ends at {', '.join(map(str, arch.eos_ids))}"
        )
        seen.note(
            "ok",
            f"{key}.path",
            f"{arch.family}, {arch.layers} layers of width {arch.width}, "
            f"vocabulary {arch.vocab_size}, {ends}",
        )
        ways = seen.config.mesh.tensor
        if arch.heads % ways or arch.kv_heads % ways:
            seen.note(
                "warning",
                "mesh.tensor",
                f"{ways} does not divide the {arch.heads} heads and {arch.kv_heads} key/value "
                f"heads of {key}: their weights are copied to every device",
            )
    if model.attention == "cudnn" and (
        jax.default_backend() != "gpu" or model.dtype != "bfloat16" or model.quant == "nf4"
    ):
        seen.note(
            "error",
            f"{key}.attention",
            "cudnn needs an NVIDIA GPU and dtype bfloat16; use xla",
        )


def _weights(seen: Examination) -> None:
    """Checks that the weights of local models are finite; a run checks it while it loads them."""
    for name, spec in seen.specs.items():
        key = name if name == SENDER else f"receivers.{name}"
        if Path(spec.config.path).expanduser().exists():
            with seen.trying(f"{key}.path"):
                if name == SENDER:
                    _needed(seen, spec.check_weights)
                else:
                    spec.check_weights()


def _needed(seen: Examination, check: Callable[[int | None, bool], None]) -> None:
    """Checks the part of a local sender that is read: up to the highest tap, or all if it writes.

    Args:
        seen: the examination.
        check: takes the number of layers, from the first on, and whether the head is needed.
    """
    if not Path(seen.specs[SENDER].config.path).expanduser().exists():
        return
    stages = seen.config.stages.values()
    if any(s.evaluate and any(method(m).relayed for m in s.evaluate.methods) for s in stages):
        check(None, True)
    else:
        check(sender_layers(seen.config, seen.specs), False)


def _rows(seen: Examination) -> None:
    """Reads the rows of every stage."""
    config, load = seen.config, cache(load_rows)
    for name, stage in config.stages.items():
        for kind, whole in chosen(stage).items():
            if kind == "pretrain":
                _pretraining_rows(seen, f"stages.{name}.pretrain", whole)
                continue
            for key, cfg, data, split, level in _needed_rows(config, name, kind, whole):
                with seen.trying(key):
                    rows = load(data, split, config.seed, level)
                    groups = sample(rows, CHECKED_ROWS)
                    seen.groups += groups if split == "train" or not seen.groups else []
                    if kind == "evaluate":
                        seen.asked[name] = [example for group in groups for example in group]
                    most = max(map(len, groups), default=0)
                    if hasattr(rows, "drawn"):  # as many as are asked for
                        most = 0
                    if split == "train" and kind == "train" and 0 < most < cfg.questions:
                        seen.note(
                            "warning",
                            f"stages.{name}.train.questions",
                            f"{cfg.questions} of each context, and none of the first {len(groups)} "
                            f"has more than {most}",
                        )
                    of = "" if level is None else f" of level {level}"
                    seen.note("ok", key, f"{name}: {len(rows)} contexts{of} to {split}")
                    if split == "validation" and len(rows) < 2:
                        raise UserError(
                            f"{len(rows)} context in the split 'validation', and the quick "
                            f"evaluation of stages.{name} needs two; set its eval_every to 0"
                        )
                    seen.loaded.append((name, key, f"{of.strip()} to {split}".strip(), rows))
                    said = remarks_of(rows)
                    if kind == "evaluate":
                        said += leaks(config, name, rows, load)
                    for remark in said:
                        seen.note(remark.level, key, remark.text)
            begun = {n: getattr(whole, n, None) for n in ("init_from", "teacher")}
            begun |= {f"rivals.{n}": d for n, d in getattr(whole, "rivals", {}).items()}
            for of, start in begun.items():
                parts = ("checkpoints", "bridge.safetensors", "calibration")
                if start is not None and not any((Path(start) / part).exists() for part in parts):
                    text = (
                        f"{start} has no checkpoints; give the directory of a finished run, "
                        "or of an exported bridge"
                    )
                    seen.note("error", f"stages.{name}.{kind}.{of}", text)


def _lengths(seen: Examination) -> None:
    """Says how many contexts are too long."""
    config = seen.config
    assert config.bridge is not None
    sources = tokenizers_of(config.bridge, seen.specs)
    receivers = {n: seen.specs[n].tokenizer for n in config.receivers}
    for name, key, which, rows in seen.loaded:
        with seen.trying(key):
            stage = config.stages[name]
            layout = stage.train.layout if stage.train else None
            if stage.evaluate is not None:
                layout = stage.evaluate.layout or layout_at(config, before=name)
            found = lengths_of(rows, layout or config.layout, sources, receivers, which)
            if found is not None:
                seen.note(found.level, f"stages.{name}", found.text)


def _needed_rows(
    config: Config, name: str, kind: str, cfg: Any
) -> Iterator[tuple[str, Any, Any, str, int | None]]:
    """(key, config of the stage or task, data, split, level) of all rows that a stage reads."""

    def keyed(data: Any, own: str) -> tuple[str, Any]:
        return ("data", config.data) if data is None else (f"stages.{name}.{kind}.{own}", data)

    if kind != "train":
        key, data = keyed(getattr(cfg, "data", None), "data")
        yield key, cfg, data, "eval" if kind == "evaluate" else "train", None
        return
    for task, own in cfg.each().items():
        replaced = task is not None and cfg.tasks[task].data is not None
        key, data = keyed(own.data, f"tasks.{task}.data" if replaced else "data")
        for level in levels_of(own):
            yield key, own, data, "train", level
    if cfg.eval_every:
        key, data = keyed(cfg.data, "data")
        yield key, cfg, data, "validation", None


def _pretraining_rows(seen: Examination, key: str, cfg: Any) -> None:
    from lw_jax.data import gsm8k

    if cfg.gsm8k_train is None:
        return
    source = gsm8k.Config(train=cfg.gsm8k_train, eval=cfg.gsm8k_eval)
    for split in ("train", "eval"):
        with seen.trying(f"{key}.gsm8k_{split}"):
            rows = source.rows(split)
            seen.note("ok", f"{key}.gsm8k_{split}", f"{len(rows)} problems")
            for remark in rows.remarks:
                seen.note(remark.level, f"{key}.gsm8k_{split}", remark.text)


def _layout(seen: Examination) -> None:
    """Checks that labels are the tokens of the whole string, and that the texts fit the models."""
    config, examples = seen.config, [e for g in seen.groups for e in g]
    receivers = {n: seen.specs[n].tokenizer for n in config.receivers}
    for name, tokenizer in receivers.items():
        with seen.trying(f"receivers.{name}"):
            count = max(check_labels(layout, tokenizer, examples) for layout in _layouts(config))
            seen.note("ok", f"receivers.{name}", f"labels of {count} answers are right")
    _reading(seen, examples)
    for name, asked in seen.asked.items():
        cfg = config.stages[name].evaluate
        assert cfg is not None
        with seen.trying(f"stages.{name}.evaluate"):
            layout = cfg.layout or layout_at(config, before=name)
            candidates_of(cfg, cfg.data or config.data, layout, asked, receivers.values())
            _gold_answers(seen, f"stages.{name}.evaluate", cfg, layout, asked)
    with seen.trying("layout"):
        limit = config.layout.max_tokens
        assert config.bridge is not None
        sources = tokenizers_of(config.bridge, seen.specs)
        seen.sizes = measure(config.layout, sources, receivers, seen.groups, limit).sizes
        collate = Collate(config.layout, sources, receivers, Lengths(seen.sizes))
        archs = {n: seen.specs[n].arch for n in receivers}
        sender = sender_arch(seen.specs)
        for remark in beyond_models(config.bridge, collate, seen.groups, sender, archs):
            seen.note(remark.level, "layout.max_tokens", remark.text)


def _gold_answers(
    seen: Examination, key: str, cfg: EvaluateConfig, layout: LayoutConfig, asked: list[Any]
) -> None:
    """Warns of gold answers that an evaluation's decoding cannot write."""
    most = cfg.decode.max_new_tokens
    stop = stop_strings(cfg.decode.stop, data_set(cfg.data or seen.config.data), layout)
    for name in seen.config.receivers:
        found = unwritable(layout, seen.specs[name].tokenizer, asked, most, stop)
        if found.count:
            seen.note("warning", f"{key}.decode", found.words(name, most, stop))


def _reading(seen: Examination, examples: list[Example]) -> None:
    """Checks that what the sources read is the text."""
    assert seen.config.bridge is not None
    for key, tokenizer in by_key(tokenizers_of(seen.config.bridge, seen.specs)).items():
        with seen.trying(f"bridge.{key}"):
            for layout in _layouts(seen.config):
                check_reading(layout, tokenizer, examples)


def _layouts(config: Config) -> list[LayoutConfig]:
    """The config's layout, and those of single stages."""
    stages = [cfg for stage in config.stages.values() for _, cfg in _batched(stage)]
    given = [getattr(cfg, "layout", None) for cfg in stages]
    return [config.layout, *(layout for layout in given if layout is not None)]


def _memory(seen: Examination) -> None:
    for name, stage in seen.config.stages.items():
        if stage.train is not None:
            _training_memory(seen, f"stages.{name}.train", stage.train)
        elif stage.evaluate is not None and stage.evaluate.of_whole_sender:
            _relay_memory(seen, f"stages.{name}.evaluate", stage.evaluate)


def _training_memory(seen: Examination, key: str, cfg: TrainConfig) -> None:
    config = seen.config
    with seen.trying(key):
        step = abstract_step(config, cfg, seen.specs, seen.sizes, make_mesh(config.mesh))
        check_trains(config, cfg, seen.specs, seen.sizes, step)
        if cfg.remat == "auto":
            mesh = make_mesh(config.mesh)
            cfg, need = settled(
                cfg, lambda own: abstract_step(config, own, seen.specs, seen.sizes, mesh)
            )
            seen.note("ok", f"{key}.remat", f"auto: {cfg.remat}")
        else:
            need = estimate(step)
        fits = need.total < need.room
        advice = "; lower batch_size, accumulate more, or set quant"
        if need.state > max(need.frozen, need.work):
            advice = "; the bridge is too large: lower latent_dim, slots, widths or depths"
        seen.note("ok" if fits else "error", key, f"{need}{'' if fits else advice}")


def _relay_memory(seen: Examination, key: str, cfg: EvaluateConfig) -> None:
    config = seen.config
    with seen.trying(key):
        mesh, layout = make_mesh(config.mesh), cfg.layout or config.layout
        frozen = abstract_models(config, seen.specs, mesh, layout)
        whole = seen.specs[SENDER].abstract(mesh)
        needs = cfg.of_whole_sender[0]
        need = RelayNeed(size_in_bytes(frozen), size_in_bytes(whole), device_memory(), needs)
        fits = need.total < need.room
        advice = (
            ""
            if fits
            else f"; leave {needs} out, spread the models (mesh.fsdp, mesh.tensor), or set quant"
        )
        seen.note("ok" if fits else "error", key, f"{need}{advice}")
