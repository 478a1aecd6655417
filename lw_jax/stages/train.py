"""The stage that trains the bridge."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.apart import sender_taps
from lw_jax.bridge.bridge import fresh
from lw_jax.bridge.paths import components, from_paths
from lw_jax.config.schema import calibrate_before
from lw_jax.data.example import Remark
from lw_jax.data.load import data_set
from lw_jax.data.prefetch import ahead
from lw_jax.data.stream import Stream
from lw_jax.errors import UserError
from lw_jax.mesh import put, put_trained, replicated
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import Teacher
from lw_jax.pipeline import Pipeline
from lw_jax.runs import receiver_rms, statistics, teacher
from lw_jax.runs.abstract import AbstractStep, size_in_bytes
from lw_jax.runs.calibrated import filled, needs_statistics
from lw_jax.runs.directory import FINISHED, Run
from lw_jax.runs.identity import depends_on, identity
from lw_jax.runs.memory import settled
from lw_jax.runs.rows import report
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.streams import (
    Part,
    answer_stop,
    parts_of,
    phases,
    remarks,
    rows_of_process,
    task_rows,
    validation,
)
from lw_jax.runs.trained import load_trained
from lw_jax.text.collate import Batch, Collate
from lw_jax.train.checkpoint import steps
from lw_jax.train.config import Reuse, TrainConfig
from lw_jax.train.curriculum import Timetable, Turn, turns_of
from lw_jax.train.fed import Fed, fed, on_mesh, one_ahead, shapes_of, shapes_of_stream
from lw_jax.train.loop import Evaluation, Job, Metrics, StepFn, checkpoint_root, end_of, fit
from lw_jax.train.monitor import QuickEvaluation
from lw_jax.train.optimiser import path_of, stage_optimiser
from lw_jax.train.plan import Plan, init_heads, plan_at
from lw_jax.train.reach import check_reach
from lw_jax.train.reuse import Reused, expected, says
from lw_jax.train.state import TrainState, new_state
from lw_jax.train.step import make_step
from lw_jax.types import PyTree
from lw_jax.utils import hosts
from lw_jax.utils.compile import Behind
from lw_jax.utils.registry import chosen


def run(run: Run, name: str, cfg: TrainConfig) -> None:
    """Train the bridge, from the stage before, another run, or fresh parameters."""
    config = run.config.of_stage(cfg)
    assert config.bridge is not None
    beside = ThreadPoolExecutor(1, "rows")
    reading = beside.submit(task_rows, config, cfg)  # while the models are read and measured
    pipeline = open_pipeline(config, run.mesh, run.run_dir, session=run.session)
    teachers: dict[str, Teacher] = {}
    if cfg.teacher is not None:
        teachers = teacher.load(cfg.teacher, pipeline, run.session)

    def measured() -> dict[str | None, Part]:
        return parts_of(pipeline, config, cfg, name, teachers, reading.result())

    # while parameters are made; several processes begin their programs in the same order
    measuring = beside.submit(measured) if hosts.count() == 1 else None
    beside.shutdown(wait=False)
    objectives = cfg.objectives or config.objectives
    root = jax.random.fold_in(jax.random.key(config.seed), list(config.stages).index(name))
    params = {
        "bridge": start_params(run, name, cfg, pipeline, root),
        "heads": init_heads(objectives, pipeline.bridge.dims, jax.random.fold_in(root, 1)),
    }
    if cfg.teacher_prompt:
        params["bridge"] = teacher.with_prompts(params["bridge"], pipeline.bridge, teachers)
    if cfg.prompt_from is not None:
        key = "prompt_from"
        begun = teacher.load(cfg.prompt_from, pipeline, run.session, key)
        params["bridge"] = teacher.with_prompts(params["bridge"], pipeline.bridge, begun, key)
    params = put_trained(run.mesh, params)
    optimiser, trained = stage_optimiser(cfg, pipeline.bridge, objectives, params)
    state = new_state(params, optimiser, jax.random.fold_in(root, 2), cfg.ema)
    turns = turns_of(phases(cfg))
    parts = measured() if measuring is None else measuring.result()
    for part in parts.values():
        _check_heads(part.objectives, objectives, pipeline.bridge.dims, f"stages.{name}")
        for key, stream in part.streams.items():
            said = remarks(part.pipeline, part.levels[key], stream)
            report(run.console, f"stages.{name}", said)

    here = rows_of_process(run.mesh, cfg)
    streams = {key: one for part in parts.values() for key, one in part.streams.items()}

    def plan(step: int) -> Plan:
        other = cfg.text_batches
        kind = "latent" if other is None else other.kind(config.seed, name, step)
        return plan_at(parts[turns[step].task].objectives, step, kind)

    decided = {"train": cfg}
    """The config with `remat` decided, once the stage knows its shapes."""

    def stepping(own: TrainConfig, plan: Plan, ratio: float | None) -> jax.stages.Wrapped:
        return make_step(
            own, pipeline.bridge, optimiser, run.mesh, plan, trained=trained, ratio=ratio
        )

    @cache
    def compiled(task: str | None, plan: Plan, ratio: float | None) -> jax.stages.Wrapped:
        return stepping(decided["train"].of(task), plan, ratio)

    programs = Behind(run.console)
    keys: dict[tuple[tuple[Plan, float | None], str | None, Hashable], Hashable] = {}
    """Of the programs of steps, by what they depend on."""
    asking: dict[Hashable, Hashable] = {}
    """Of those that ask the frozen models beforehand, by the same."""
    wanted: dict[tuple[Plan, str | None], frozenset[str]] = {}
    sending: dict[Hashable, Hashable] = {}
    """Of those of a sender on devices of its own, by the shapes of a batch."""
    reused = None
    if cfg.reuse is not None and hosts.count() > 1:
        raise UserError(
            f"stages.{name}.train.reuse: each process would keep only what its own devices said; "
            "leave it out where several processes train"
        )
    if cfg.reuse is not None:
        folder = Path(cfg.reuse.folder or run.run_dir / "reuse").expanduser()
        _check_repeats(f"stages.{name}.train", turns, streams)
        prints = depends_on(run.config, pipeline)
        reused = Reused(
            cfg.reuse,
            pipeline.bridge,
            prints,
            folder,
            run.console.print,
            cfg.shared_text,
            pipeline.with_taps,
        )
    evaluation: list[Hashable] = []
    watching: list[Hashable] = []

    def step_for(step: int) -> StepFn:
        turn = turns[step]
        own = plan(step), ratio_of[turn.phase]
        program, frozen = compiled(turn.task, *own), parts[turn.task].pipeline.frozen

        def stepped(state: TrainState, fed: Fed) -> tuple[TrainState, Metrics]:
            keyed = own, turn.task, shapes_of(fed.arrays)
            arrays, said = fed.arrays, fed.metrics
            if reused is not None:
                asks = wanted[own[0], turn.task]
                ready = partial(programs.wait, sending.get(keyed[-1]), asking.get(keyed))
                arrays, asked = reused.fill(asks, frozen, fed.host, arrays, ready)
                said = said | {"reused": float(not asked)}
            programs.wait(keys.get(keyed))
            state, metrics = program(state, frozen, arrays)
            return state, dict(metrics) | said

        return stepped

    ratio_of = {phase.index: phase.ratio for phase in phases(cfg)}
    table = Timetable(turns, {key: one.batch for key, one in streams.items()})
    quick = None
    if cfg.eval_every or cfg.watch_every:
        groups = validation(pipeline, config, cfg)
        quick = QuickEvaluation(
            pipeline,
            groups,
            objectives,
            cfg.steps,
            cfg.batch_size // cfg.accumulate,
            stop=answer_stop(config, cfg),
            watch_every=cfg.watch_every,
            contexts=cfg.batch_size,
            max_new=cfg.eval_tokens,
            ends_in_number=data_set(config.data).ends_in_number,
        )

    def prepare(state: TrainState, start: int) -> None:
        shapes = cache(lambda name: shapes_of_stream(run.mesh, streams[name], here))
        needed: list[tuple[int, Callable[[], None]]] = []
        says_of: dict[str, dict[str, Any]] = {}
        if cfg.remat == "auto":
            turn = turns[start]
            own, frozen = (plan(start), ratio_of[turn.phase]), parts[turn.task].pipeline.frozen
            batches = [on_mesh(run.mesh, table.batch(start), here), *shapes(turn.stream)]
            largest = pipeline.shapes_with_taps(max(batches, key=size_in_bytes))
            decided["train"], _ = settled(
                cfg,
                lambda train: AbstractStep(
                    stepping(train, *own), state, frozen, largest, own[0], trained
                ),
            )
            run.console.print(f"remat: auto is {decided['train'].remat}", highlight=False)

        def step_programs(step: int) -> None:
            turn = turns[step]
            own = plan(step), ratio_of[turn.phase]
            frozen = parts[turn.task].pipeline.frozen
            first = [on_mesh(run.mesh, table.batch(step), here)] if step == start else []
            for batch in first + shapes(turn.stream):
                if pipeline.apart is not None:
                    asked = pipeline.apart.call(pipeline.bridge, batch)
                    sending[shapes_of(batch)] = programs.add(sender_taps, *asked)
                whole = pipeline.shapes_with_taps(batch)
                batch = whole if reused is None else batch
                keyed = own, turn.task, shapes_of(batch)
                if reused is not None:
                    if (own[0], turn.task) not in wanted:
                        asks = reused.wanted(own[0], state.params, frozen, whole)
                        wanted[own[0], turn.task] = asks
                    asks = wanted[own[0], turn.task]
                    given = pipeline.bridge, asks, cfg.shared_text, frozen, whole
                    asking[keyed] = programs.add(says, *given)
                    said = says.eval_shape(*given)
                    says_of[turn.stream] = says_of.get(turn.stream, {}) | said
                    batch = batch | on_mesh(run.mesh, said)
                keys[keyed] = programs.add(compiled(turn.task, *own), state, frozen, batch)

        def evaluation_programs(quick: QuickEvaluation) -> None:
            done = {*range(cfg.eval_every, cfg.steps + 1, cfg.eval_every), cfg.steps}
            after = (step for step in done if step > start)
            evaluation.extend(quick.add_programs(programs, state, after))

        def watching_programs(quick: QuickEvaluation) -> None:
            done = range(cfg.watch_every, cfg.steps + 1, cfg.watch_every)
            after = [step for step in done if step > start]
            watching.extend(quick.add_watching(programs, state, after))

        for step in _each_once(turns, plan, start):
            needed.append((step, partial(step_programs, step)))
        if quick is not None and cfg.eval_every:
            needed.append((start + cfg.eval_every, partial(evaluation_programs, quick)))
        if quick is not None and cfg.watch_every:
            needed.append((start + cfg.watch_every, partial(watching_programs, quick)))
        for _, add in sorted(needed, key=lambda one: one[0]):
            add()
        if cfg.reuse is not None:
            if not start and not any(wanted.values()):
                raise UserError(
                    f"stages.{name}.train.reuse: its objectives and its source ask the frozen "
                    "models for nothing that it keeps; leave reuse out"
                )
            report(run.console, f"stages.{name}", [_room(cfg.reuse, streams, says_of)])
        if not start:
            try:
                check_reach(
                    ((own[0], programs.traced(key)) for (own, *_), key in keys.items()),
                    pipeline.bridge,
                    trained,
                )
            except UserError as error:
                raise UserError(f"stages.{name}.train: {error}") from None
        programs.start()

    def evaluate(state: TrainState, step: int) -> Evaluation:
        assert quick is not None
        programs.wait(*evaluation)
        return quick(state, step)

    def watch(state: TrainState, step: int) -> Mapping[str, Any]:
        assert quick is not None
        programs.wait(*watching)
        began = time.monotonic()
        seen = quick.watch(state, step)
        return seen | {"seconds": time.monotonic() - began}

    def given(batch: Batch) -> Fed:
        on_devices = fed(run.mesh, batch, here)
        if reused is None and pipeline.apart is not None:
            programs.wait(sending.get(shapes_of(on_devices.arrays)))
            on_devices = on_devices._replace(arrays=on_devices.arrays | pipeline.taps(batch))
        return on_devices

    def batches(start: int, stop: int) -> Iterator[Fed]:
        made = map(given, ahead(table.batch, start, stop, cfg.workers))
        return made if pipeline.apart is None else one_ahead(made)

    job = Job(
        name=name,
        directory=run.run_dir,
        steps=cfg.steps,
        state=put_trained(run.mesh, state),
        step_for=step_for,
        batches=batches,
        identity=identity(run.config, name, pipeline),
        log_every=cfg.log_every,
        save_every=cfg.save_every,
        eval_every=cfg.eval_every,
        keep=cfg.keep,
        max_bad_steps=cfg.max_bad_steps,
        stop_when=cfg.stop_when,
        judged_after=judged_after(cfg),
        prepare=prepare,
        evaluate=evaluate if cfg.eval_every else None,
        watch_every=cfg.watch_every,
        watch=watch if cfg.watch_every else None,
        look_at_models=lambda fed: look_at_models(pipeline, fed.arrays),
        by_cudnn=by_cudnn(pipeline),
        tensorboard=cfg.tensorboard,
        before_saving=None if reused is None else reused.settle,
    )
    try:
        fit(job)
    finally:
        programs.close()
        if reused is not None:
            reused.close()


def by_cudnn(pipeline: Pipeline) -> tuple[str, ...]:
    """The receivers whose attention is cudnn's."""
    receivers = pipeline.frozen.receivers
    return tuple(name for name, model in receivers.items() if model.attention == "cudnn")


def look_at_models(pipeline: Pipeline, batch: Any) -> str | None:
    """What is not finite in the frozen models, or in what they make of a batch; None: nothing."""
    models = {"sender": pipeline.sender, **pipeline.frozen.receivers}
    for name, model in models.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            real = jnp.issubdtype(leaf.dtype, jnp.inexact)
            if real and not bool(jnp.all(jnp.isfinite(leaf))):
                return f"{name}'s weights {path_of(path)} are not"
    for name, dims in pipeline.bridge.dims.receivers.items():
        rms = dims.embed_rms, *dims.key_rms, *dims.value_rms
        if not np.all(np.isfinite(rms)):
            return f"the RMS of {name}, in {receiver_rms.FILE}, is not"
    frozen, batch = pipeline.frozen, pipeline.with_taps(batch)
    sources = jax.jit(pipeline.bridge.extract)(frozen.sender, batch, None, frozen.receivers)
    for name, taps in sources.items():
        if not bool(jnp.all(jnp.isfinite(jnp.where(taps.mask[None, ..., None], taps.states, 0)))):
            return f"what the {name} reads of the texts is not (is its dtype too narrow?)"
    return None


def lost(run: Run, name: str, cfg: TrainConfig) -> str | None:
    """Whether the last checkpoints of the finished stage are gone.

    Raises:
        UserError: all of them are, and a later stage needs them.
    """
    root = checkpoint_root(run.run_dir, name)
    held, names, done = steps(root), list(run.config.stages), run.finished()
    if not held:
        if all(n in done for n in names[names.index(name) + 1 :]):
            return None
        raise UserError(
            f"{root}: stages.{name} was finished, and its checkpoints are gone: put them back, or "
            f"delete {run.run_dir / FINISHED} to train it again from its start"
        )
    if held[0] >= end_of(run.run_dir, name, cfg.steps):
        return None
    return f"done already, but its last checkpoint is gone; going on from step {held[0]}"


def judged_after(cfg: TrainConfig) -> int:
    """Steps before which `stop_when` judges nothing."""
    given = None if cfg.stop_when is None else cfg.stop_when.after
    return phases(cfg)[-1].start if given is None else given


def start_params(run: Run, name: str, cfg: TrainConfig, pipeline: Pipeline, rng: Any) -> PyTree:
    """The bridge's parameters before the first step.

    Raises:
        UserError: what it is to start from has no checkpoint, or holds another bridge; the
            statistics that it needs belong to other models.
    """
    earlier = [n for n, s in run.config.stages.items() if s.train is not None]
    load = partial(load_trained, run.config, run.run_dir, pipeline, before=name)
    if not cfg.init_only and (cfg.init_from is not None or earlier.index(name) > 0):
        return load(init_from=cfg.init_from).params
    found, measured = None, calibrate_before(run.config.stages, name)
    if needs_statistics(pipeline.bridge) and measured is not None:
        path = statistics.path_of(run.run_dir, measured)
        found = statistics.load(path, identity(run.config, measured, pipeline))
    params = fresh(pipeline.bridge, jax.random.fold_in(rng, 0))
    if found is not None:
        with statistics.used(path):
            params = filled(pipeline.bridge, params, found)
    if cfg.init_only:
        found_there = load(init_from=cfg.init_from, only=cfg.init_only).params
        params = from_paths(dict(components(params)) | dict(components(found_there)))
    return put(params, replicated(run.mesh))


def _check_heads(own: Any, all_of: Any, dims: BridgeDims, where: str) -> None:
    """Raises UserError if an objective of a task has parameters, and is not one of the stage's."""
    if own is all_of:
        return
    for name in jax.eval_shape(lambda rng: init_heads(own, dims, rng), jax.random.key(0)):
        if name not in chosen(all_of):
            raise UserError(
                f"{where}.train.tasks: objectives.{name} has parameters of its own, so it must be "
                "one of the stage's objectives as well"
            )


def _check_repeats(where: str, turns: tuple[Turn, ...], streams: Mapping[str, Stream]) -> None:
    """Raises UserError if no stream of a stage gives a row twice."""
    many = {key: len(stream.rows) for key, stream in streams.items()}
    taken = {
        key: sum(turn.stream == key for turn in turns) * stream.batch_size
        for key, stream in streams.items()
    }
    if all(taken[key] <= many[key] for key in streams):
        largest = max(streams, key=lambda key: many[key])
        raise UserError(
            f"{where}.reuse: no context comes twice: {taken[largest]} are taken of "
            f"{many[largest]}, or they are made anew without end; leave reuse out"
        )


def _room(reuse: Reuse, streams: Mapping[str, Stream], says_of: Mapping[str, Any]) -> Remark:
    """How much would be kept, and how much can be."""
    asked = 0
    for key, states in says_of.items():
        collate = streams[key].collate
        assert isinstance(collate, Collate)
        asked += expected(states, collate, streams[key].rows)
    room = max(reuse.memory_gb, reuse.disk_gb)
    said = f"reuse: about {asked / 1e9:.3g} GB of what frozen models say, {room:g} GB of room"
    if asked <= room * 1e9:
        return Remark("ok", said)
    return Remark(
        "warning", f"{said}: batches with rows beyond it are asked anew each time; raise disk_gb"
    )


def _each_once(turns: tuple[Turn, ...], plan: Callable[[int], Plan], start: int) -> Iterator[int]:
    """The first step from `start` on of every program that the stage runs."""
    seen = set()
    for step in range(start, len(turns)):
        key = turns[step].phase, turns[step].stream, plan(step)
        if key not in seen:
            seen.add(key)
            yield step
