"""What the doctor looks at in stages: batches, schedules, shapes, starts and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lw_jax.bridge.config import fits
from lw_jax.compressors import interlingua
from lw_jax.config.schema import StageConfig
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.methods import method
from lw_jax.mesh import make_mesh, make_sender_mesh
from lw_jax.models.spec import SENDER
from lw_jax.runs.abstract import abstract_apart, abstract_models, abstract_step, size_in_bytes
from lw_jax.runs.findings import Examination
from lw_jax.runs.memory import (
    RelayNeed,
    device_memory,
    estimate,
    estimate_sender,
    settled,
)
from lw_jax.runs.ready import check_parts, check_start, check_trains, traced
from lw_jax.runs.trained import is_fitted, still_to_train
from lw_jax.train.config import TrainConfig
from lw_jax.utils.registry import chosen


def check_schedules(seen: Examination) -> None:
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


def check_shapes(seen: Examination, steps: bool) -> None:
    """Checks that the bridge's parts, objectives and optimiser of every train stage fit.

    Args:
        seen: the examination.
        steps: whether the steps of stages that do not come first are traced as well; the first
            stage's own step comes soon enough, and a compiled step is traced anyway.
    """
    for i, (name, stage) in enumerate(seen.config.stages.items()):
        bridge = seen.config.bridge
        if stage.calibrate is not None and bridge is not None and fits(bridge):
            with seen.trying("bridge"):
                check_parts(seen.config, seen.specs)
        if stage.train is not None:
            key = f"stages.{name}.train"
            mesh = make_mesh(seen.config.mesh)
            with seen.trying(key):
                traced(seen.config, stage.train, seen.specs, seen.sizes, mesh, steps and i > 0)


def check_starts(seen: Examination) -> None:
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


def check_batches(seen: Examination, rows: int) -> None:
    """Checks that every batch divides over the mesh's rows, those of training over a sender's own
    devices, and that each view from which a latent is made has a row of what is trained on at once.
    """
    sender, bridge = seen.config.mesh.sender, seen.config.bridge
    made_by = None if bridge is None else bridge.chosen_compressor
    views = made_by.views if isinstance(made_by, interlingua.Config) else ()
    own = 1 if sender is None else sender.data * sender.fsdp
    for name, stage in seen.config.stages.items():
        for kind, cfg in batched(stage):
            count = cfg.batch_size // getattr(cfg, "accumulate", 1)
            if count % rows:
                seen.note(
                    "error",
                    f"stages.{name}.{kind}.batch_size",
                    f"{count} rows at once do not divide over {rows} devices; "
                    f"use a multiple of {rows}, or change mesh.data or mesh.fsdp",
                )
            if kind.startswith("train") and count < len(views):
                seen.note(
                    "error",
                    f"stages.{name}.{kind}.batch_size",
                    f"{count} rows at once, and the {len(views)} views of "
                    "bridge.compressor.interlingua take turns among them, so that some would have "
                    "none: raise it, or lower accumulate",
                )
            if kind.startswith("train") and cfg.batch_size % own:
                seen.note(
                    "error",
                    f"stages.{name}.{kind}.batch_size",
                    f"{cfg.batch_size} rows do not divide over {own} devices of the sender's own; "
                    f"use a multiple of {own}, or change mesh.sender.data or mesh.sender.fsdp",
                )


def batched(stage: StageConfig) -> Iterator[tuple[str, Any]]:
    """What a stage makes batches for, by key below the stage."""
    for kind, cfg in chosen(stage).items():
        each = cfg.each() if kind == "train" else {None: cfg}
        yield from ((kind if n is None else f"{kind}.tasks.{n}", own) for n, own in each.items())


def check_memory(seen: Examination) -> None:
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
        if (own := estimate_sender(step)) is not None:
            fits = own.total < own.room
            advice = "" if fits else "; raise mesh.sender.fsdp or mesh.sender.tensor, or set quant"
            where = "mesh.sender", f"{own}{advice}"
            seen.note("ok" if fits else "error", *where)


def _relay_memory(seen: Examination, key: str, cfg: EvaluateConfig) -> None:
    config = seen.config
    with seen.trying(key):
        mesh, layout = make_mesh(config.mesh), cfg.layout or config.layout
        apart, own = abstract_apart(config, seen.specs), make_sender_mesh(config.mesh)
        frozen: Any = abstract_models(config, seen.specs, mesh, layout)
        if apart is not None:
            frozen = apart.model
        whole = seen.specs[SENDER].abstract(own or mesh)
        needs = cfg.of_whole_sender[0]
        need = RelayNeed(size_in_bytes(frozen), size_in_bytes(whole), device_memory(), needs)
        fits = need.total < need.room
        advice = (
            ""
            if fits
            else f"; leave {needs} out, spread the models (mesh.fsdp, mesh.tensor), or set quant"
        )
        seen.note("ok" if fits else "error", key, f"{need}{advice}")
