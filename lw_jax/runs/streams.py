"""What a train stage reads: its tasks, their rows in batches, and those of its quick evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lw_jax.config.schema import Config
from lw_jax.data.example import Example, Remark, Rows, pieces
from lw_jax.data.load import data_set, load_rows, sample
from lw_jax.data.stream import Stream
from lw_jax.errors import UserError
from lw_jax.mesh import rows_here, ways
from lw_jax.models.frozen import Teacher
from lw_jax.pipeline import Pipeline
from lw_jax.runs import teacher
from lw_jax.runs.rows import beyond_models, remarks_of, training_rows
from lw_jax.runs.session import CHECKED_ROWS, MEASURED_ROWS, laid_out
from lw_jax.text.buckets import TILE, bucketed
from lw_jax.text.budget import needs_nats
from lw_jax.text.collate import MULTIPLE, Collate, has_row
from lw_jax.text.fit import length_remark
from lw_jax.text.stop import stop_strings
from lw_jax.train.config import TrainConfig
from lw_jax.train.curriculum import Phase, phases_of
from lw_jax.utils.registry import chosen


def phases(cfg: TrainConfig) -> tuple[Phase, ...]:
    """The stage's phases."""
    return phases_of(cfg.curriculum, cfg.steps)


@dataclass(frozen=True)
class Part:
    """The steps of one task, or all of a stage without tasks.

    Attributes:
        pipeline: with the task's layout.
        objectives: of its steps.
        streams: its batches, by the name of the stream (`Turn.stream`).
        levels: of their rows, by the same names; None: as the data says.
    """

    pipeline: Pipeline
    objectives: Any
    streams: dict[str, Stream[Any, Any]]
    levels: dict[str, int | None]


def _levels(cfg: TrainConfig, task: str | None) -> dict[str, int | None]:
    """The levels of the rows of a stage, or of one of its tasks, by the names of the streams."""
    if task is not None:
        return {task: cfg.tasks[task].level}
    return {str(phase.index): phase.level for phase in phases(cfg)}


TaskRows = dict[str | None, dict[int | None, Rows]]
"""Training rows by task and level."""


def task_rows(config: Config, cfg: TrainConfig) -> TaskRows:
    """The rows that every task of a stage trains on; no model is needed.

    Args:
        config: of the run, with the stage's own data.
        cfg: the stage.

    Raises:
        UserError: what `training_rows` raises.
    """
    load = cache(load_rows)  # tasks may share a file, and all are held against the same evaluations
    return {
        task: {
            level: training_rows(config, own, own.data or config.data, level, load)
            for level in dict.fromkeys(_levels(cfg, task).values())
        }
        for task, own in cfg.each().items()
    }


def parts_of(
    pipeline: Pipeline,
    config: Config,
    cfg: TrainConfig,
    name: str,
    teachers: Mapping[str, Teacher],
    read: TaskRows,
) -> dict[str | None, Part]:
    """What the steps of every task work with.

    Args:
        pipeline: of the stage.
        config: of the run, with the stage's own data and layout.
        cfg: the stage.
        name: its name.
        teachers: tuned receivers that read the text.
        read: what `task_rows` gives.
    """
    found: dict[str | None, Part] = {}
    for task, own in cfg.each().items():
        layout, data, mine = own.layout or config.layout, own.data or config.data, pipeline
        levels, rows = _levels(cfg, task), read[task]
        if layout != pipeline.layout or data != config.data:  # those were looked at before
            mine = laid_out(pipeline, layout, sample(next(iter(rows.values())), CHECKED_ROWS))
        made = {level: collate_of(mine, own, found) for level, found in rows.items()}
        streams = {
            key: stream_of(mine, own, rows[level], config.seed, f"{name}/{key}", made[level])
            for key, level in levels.items()
        }
        objectives = own.objectives or config.objectives
        distilled = any(c.teacher_tau() is not None for c in chosen(objectives).values())
        if cfg.teacher is not None and distilled:
            teacher.check_layout(cfg.teacher, task, layout)
            taught = mine.frozen.replace(teachers=dict(teachers))  # type: ignore[attr-defined]
            mine = dataclasses.replace(mine, frozen=taught)
        found[task] = Part(mine, objectives, streams, levels)
    return found


def collate_of(pipeline: Pipeline, cfg: TrainConfig, rows: Rows) -> Collate:
    """What makes batches of some rows, whose lengths are those of up to `MEASURED_ROWS` of them."""
    groups = sample(rows, MEASURED_ROWS)
    every = needs_nats(pipeline.layout.text_budget)
    budgeted = [rows[i] for i in range(len(rows))] if every else ()
    collate = pipeline.collate(groups, rows=budgeted)
    if cfg.buckets is not None:
        multiple = MULTIPLE if jax.default_backend() == "cpu" else TILE
        collate = bucketed(collate, groups, cfg.buckets, multiple)
    return collate


def stream_of(
    pipeline: Pipeline, cfg: TrainConfig, rows: Rows, seed: int, stage: str, collate: Collate
) -> Stream[Any, Any]:
    parts = rows_of_process(pipeline.mesh, cfg)
    each = cfg.batch_size // ways(pipeline.mesh, "rows")
    return Stream(
        rows,
        collate,
        batch_size=cfg.batch_size,
        seed=seed,
        stage=stage,
        questions=cfg.questions,
        workers=cfg.workers,
        usable=has_row,
        length=None if cfg.buckets is None else pieces,
        here=None if parts is None else slice(parts.start * each, parts.stop * each),
    )


def rows_of_process(mesh: Mesh, cfg: TrainConfig) -> slice | None:
    """The part of a batch that this process makes (`mesh.rows_here`); None: all of it, as where the
    longest row of the whole decides its shape."""
    return None if cfg.buckets is not None else rows_here(mesh)


def remarks(pipeline: Pipeline, level: int | None, stream: Stream) -> list[Remark | None]:
    """What is said of a stream's rows before its first step."""
    assert isinstance(stream.collate, Collate)
    which = "to train on" if level is None else f"of level {level} to train on"
    lengths, limit = stream.collate.lengths, pipeline.layout.max_tokens
    frozen, bridge = pipeline.frozen, pipeline.bridge.config
    sender = None if frozen.sender is None else frozen.sender.arch
    archs = {name: model.arch for name, model in frozen.receivers.items()}
    rows: Any = stream.rows
    return [
        *remarks_of(rows),
        length_remark(lengths, limit, len(rows), which),
        *beyond_models(bridge, stream.collate, sample(rows, CHECKED_ROWS), sender, archs),
    ]


def validation(pipeline: Pipeline, config: Config, cfg: TrainConfig) -> list[tuple[Example, ...]]:
    """The contexts of the quick evaluation: different ones, of which two or more are short enough.

    Raises:
        UserError: there are no two.
    """
    rows = load_rows(config.data, "validation", config.seed)
    count = min(cfg.eval_rows, len(rows))
    order = np.random.default_rng(config.seed).permutation(len(rows))
    groups = _different(rows, order[: 4 * count], count)
    fits = _fit(pipeline, groups)
    if fits.sum() < min(2, len(groups)):
        more = _different(rows, order[:MEASURED_ROWS], MEASURED_ROWS)
        fitting = _fit(pipeline, more)
        groups = [group for group, fit in zip(more, fitting, strict=True) if fit][:count]
        fits = np.ones(len(groups), bool)
    if not fits[: cfg.batch_size // cfg.accumulate].any():  # the gradients' rows
        order = np.argsort(~fits, kind="stable")
        groups = [groups[int(i)] for i in order]
    if len(groups) < 2 <= cfg.eval_rows:
        raise UserError(
            f"data: {len(groups)} of {len(rows)} contexts in the split 'validation' can be used by "
            "the quick evaluation, which needs two: raise data's validation_share (or "
            "layout.max_tokens), or set eval_every: 0 (no evaluation)"
        )
    return groups


def _different(rows: Rows, order: np.ndarray, count: int) -> list[tuple[Example, ...]]:
    """The first contexts of an order, each once."""
    groups: list[tuple[Example, ...]] = []
    seen: set[str] = set()
    for i in order:
        group = rows[int(i)]
        if group[0].context_id not in seen and len(groups) < count:
            seen.add(group[0].context_id)
            groups.append(group)
    return groups


def _fit(pipeline: Pipeline, groups: list[tuple[Example, ...]]) -> np.ndarray:
    """Which contexts [n] are not too long."""
    one = [group[:1] for group in groups]
    return np.asarray(pipeline.collate(one)(one)["valid"])


def answer_stop(config: Config, cfg: TrainConfig) -> tuple[str, ...]:
    """Where answers end in the quick evaluation of a stage: as in the run's last evaluation of the
    same rows, else as the task says.

    config: with the stage's own rows and layout.
    """
    evaluated = [s.evaluate for s in config.stages.values() if s.evaluate is not None]
    given = None
    if evaluated and cfg.data is None and evaluated[-1].data is None:
        given = evaluated[-1].decode.stop
    return stop_strings(given, data_set(config.data), config.layout)
