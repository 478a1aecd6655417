"""What the doctor looks at in rows: that there are some, that they fit, that labels are right."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lw_jax.config.schema import Config
from lw_jax.data.example import Example
from lw_jax.data.load import data_set, load_rows, sample
from lw_jax.errors import UserError
from lw_jax.evaluate.candidates import candidates_of
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.methods import method
from lw_jax.models.arch import Arch
from lw_jax.runs.check_stages import batched
from lw_jax.runs.findings import Examination
from lw_jax.runs.frozen import sender_arch, tokenizers_of
from lw_jax.runs.places import OTHER_RUNS
from lw_jax.runs.rows import beyond_models, leaks, lengths_of, levels_of, remarks_of
from lw_jax.runs.session import CHECKED_ROWS
from lw_jax.runs.trained import layout_at
from lw_jax.text.collate import Collate, Lengths, by_key, measure
from lw_jax.text.layout import check_labels, check_reading
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import stop_strings, unwritable
from lw_jax.utils.registry import chosen


def check_rows(seen: Examination) -> None:
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
                    if kind == "evaluate":
                        _check_others(name, cfg, len(rows))
                    seen.loaded.append((name, key, f"{of.strip()} to {split}".strip(), rows))
                    said = remarks_of(rows)
                    if kind == "evaluate":
                        said += leaks(config, name, rows, load)
                    for remark in said:
                        seen.note(remark.level, key, remark.text)
            begun = {n: getattr(whole, n, None) for n in OTHER_RUNS}
            begun |= {f"rivals.{n}": d for n, d in getattr(whole, "rivals", {}).items()}
            for of, start in begun.items():
                parts = ("checkpoints", "bridge.safetensors", "calibration")
                if start is not None and not any((Path(start) / part).exists() for part in parts):
                    text = (
                        f"{start} has no checkpoints; give the directory of a finished run, "
                        "or of an exported bridge"
                    )
                    seen.note("error", f"stages.{name}.{kind}.{of}", text)


def _check_others(stage: str, cfg: EvaluateConfig, contexts: int) -> None:
    """Checks that rows have others whose latents can be given in their place.

    Raises:
        UserError: there is one context, or one row is to be evaluated.
    """
    needs = [name for name in cfg.all_methods if method(name).latent == "other"]
    if needs and min(contexts, cfg.rows or contexts) < 2:
        what = "1 context" if contexts < 2 else f"stages.{stage}.evaluate.rows: 1 row"
        raise UserError(
            f"{what} to evaluate, and {needs[0]} gives each the latent of another; give two or more"
        )


def check_lengths(seen: Examination) -> None:
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


def check_layout(seen: Examination) -> None:
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
        for name, arch in archs.items():
            count = seen.sizes.get(f"{name}/ask", 0) + seen.sizes.get(f"{name}/answer", 0)
            if isinstance(arch, Arch) and count > arch.max_positions:
                seen.note(
                    "warning",
                    f"receivers.{name}",
                    f"questions and answers have up to {count} tokens together; it was made for "
                    f"{arch.max_positions}, the message included: give shorter ones",
                )


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
    stages = [cfg for stage in config.stages.values() for _, cfg in batched(stage)]
    given = [getattr(cfg, "layout", None) for cfg in stages]
    return [config.layout, *(layout for layout in given if layout is not None)]
