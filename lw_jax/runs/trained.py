"""The trained bridge of a run, for evaluation and for the Python API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax

from lw_jax.bridge.bridge import fresh
from lw_jax.bridge.config import closed_form, fits, to_be_trained
from lw_jax.bridge.paths import chosen_parts, from_paths, readable
from lw_jax.config.parse import build, from_dict, to_dict
from lw_jax.config.schema import Config, calibrate_before
from lw_jax.errors import UserError
from lw_jax.mesh import put, replicated
from lw_jax.models.fingerprint import comparable
from lw_jax.pipeline import Pipeline
from lw_jax.runs import receiver_rms, statistics
from lw_jax.runs.calibrated import alone
from lw_jax.runs.directory import read_config, read_finished
from lw_jax.runs.exported import ABOUT, about_bridge, is_exported, load_bridge, trained_config
from lw_jax.runs.frozen import agreed
from lw_jax.runs.identity import identity
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.checkpoint import (
    check_same,
    checksum,
    component_counts,
    load_params,
    read_meta,
    steps,
)
from lw_jax.train.loop import checkpoint_root, end_of
from lw_jax.types import PyTree
from lw_jax.wire.mark import mark_of

FITTED = ".npz"
"""Ends the name of a calibrate stage's statistics, which may determine a bridge."""


@dataclass(frozen=True)
class Trained:
    """The trained bridge of a run.

    Attributes:
        params: the bridge's parameters, on the mesh.
        stage: stage of the checkpoint.
        step: step of the checkpoint.
        which: which checkpoint of the stage, `last` or `best`.
        origin: how the parameters began, in words.
        counts: parameters of each component, checked to equal those that were trained.
        digest: names exactly these values.
        layout: layout that it was trained with; None: unknown.
        bad_steps: steps of the stage that were not finite, and changed nothing; None: unknown.
        about: what, besides the parameters, says what a packet means: the bridge's config, the
            layout, and the fingerprints of the frozen models that it was trained between.
    """

    params: PyTree
    stage: str
    step: int
    which: str
    origin: str
    counts: dict[str, int]
    digest: str
    layout: LayoutConfig | None = None
    bad_steps: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def mark(self) -> bytes:
        """8 bytes that name the bridge on the wire; computed once."""
        return mark_of(self.params, self.about)

    def to_json(self) -> dict[str, Any]:
        """The entry in `metrics.json`."""
        return {
            "stage": self.stage,
            "step": self.step,
            "checkpoint": self.which,
            "origin": self.origin,
            "digest": self.digest,
            "components": self.counts,
            "total": sum(self.counts.values()),
            **({} if self.bad_steps is None else {"bad_steps": self.bad_steps}),
        }


def load_trained(
    config: Config,
    run_dir: Path,
    pipeline: Pipeline,
    which: Literal["last", "best"] = "last",
    before: str | None = None,
    init_from: str | None = None,
    only: Sequence[str] = (),
) -> Trained:
    """The bridge as the last train stage left it, or of another run.

    Before the first train stage it is the bridge that this stage starts from, if it starts from
    another run; else, where nothing in it is to be trained, the one that a `calibrate` stage has
    fitted, of step 0.

    Args:
        config: config of the run.
        run_dir: directory of the run.
        pipeline: pipeline of the run.
        which: which checkpoint.
        before: only stages before this one count; None: all.
        init_from: the other run's directory, or that of an exported bridge.
        only: components to load; empty: all, and there may be no others.

    Raises:
        UserError: no stage trains, none has a checkpoint yet, it holds other parameters, or it
            was trained between other frozen models.
    """
    root, origin = _place(config, run_dir, before, init_from)
    if root.suffix == FITTED:
        if before is not None and root.parents[1] == run_dir:  # a stage of the run that fitted it
            statistics.load(root, identity(config, root.stem, pipeline))
        return _fitted(config, pipeline, root, origin, only)
    everywhere = replicated(pipeline.mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        fresh.eval_shape(pipeline.bridge, jax.random.key(0)),
    )
    only = [readable(name, pipeline.receivers) for name in only]
    if is_exported(root):
        bare, meta = load_bridge(root, like, only)
        params, saved, home = {"bridge": bare}, meta, root
        trained_by = meta.get("config", {})
    else:
        params, meta = load_params(root, {"bridge": like}, which, "bridge", only)
        if which == "last":
            _check_end(root, meta["step"])
        saved, home = meta["identity"], root.parent.parent
        trained_by = saved.get("config", {})
    check_frozen(saved, pipeline, home, bool(only))
    return Trained(
        params=params["bridge"],
        stage=root.name,
        step=meta["step"],
        which=which,
        origin=origin,
        counts={k.partition("/")[2]: n for k, n in component_counts(params).items()},
        digest=f"{checksum(params['bridge']):08x}",
        layout=_layout_of(
            trained_by, meta.get("stage", root.name) if is_exported(root) else root.name
        ),
        bad_steps=meta.get("progress", {}).get("bad_steps"),
        about=_meaning(config, saved.get("fingerprints", {})),
    )


def _fitted(
    config: Config, pipeline: Pipeline, path: Path, origin: str, only: Sequence[str]
) -> Trained:
    """The bridge that a calibrate stage has wholly determined.

    Args:
        config: config of the run that uses it.
        pipeline: pipeline of that run.
        path: the stage's statistics.
        origin: how its parameters began, in words.
        only: components to load; empty: all.

    Raises:
        UserError: it is another bridge than the config's, or between other frozen models.
    """
    found, saved = statistics.load_any(path)
    home = path.parent.parent
    check_frozen(saved, pipeline, home, bool(only))
    if not only and read_config(home).bridge != config.bridge:
        raise UserError(f"{home}: its bridge is not this config's; take one part with init_only")
    bridge = pipeline.bridge
    prints = {name: pipeline.fingerprints[name] for name in bridge.dims.receivers}
    bare = {n: pipeline.weights[n] for n in bridge.dims.receivers if n in pipeline.weights}
    measured = receiver_rms.load(home, prints, bare)  # a scale of the reader starts at them
    if measured is not None:
        bridge = replace(bridge, dims=replace(bridge.dims, receivers=measured))
    like = fresh.eval_shape(bridge, jax.random.key(0))
    with statistics.used(path):
        params = alone(bridge, found)
    check_same(component_counts({"bridge": like}), component_counts({"bridge": params}))
    if only:
        params = from_paths(chosen_parts(params, only))
    params = put(params, replicated(pipeline.mesh))
    return Trained(
        params=params,
        stage=path.stem,
        step=0,
        which="last",
        origin=origin,
        counts={k.partition("/")[2]: n for k, n in component_counts({"bridge": params}).items()},
        digest=f"{checksum(params):08x}",
        layout=_layout_of(saved.get("config", {}), path.stem),
        about=_meaning(config, saved.get("fingerprints", {})),
    )


def _check_end(root: Path, step: int) -> None:
    """Checks that a finished stage's last checkpoint is that of its end.

    Args:
        root: the stage's checkpoints.
        step: of the last whole one.

    Raises:
        UserError: it was lost; says how to have it again.
    """
    run_dir, name = root.parents[1], root.name
    if name not in read_finished(run_dir):
        return
    stage = read_config(run_dir).stages[name].train
    if stage is not None and step < end_of(run_dir, name, stage.steps):
        raise UserError(
            f"{root}: the checkpoint of step {stage.steps}, with which the stage ended, is gone or "
            f"damaged: delete {root / str(stage.steps)} if it is there, and run the command that "
            f"trains it again: it goes on from step {step}"
        )


def _meaning(config: Config, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What, besides the parameters, says what a packet means, as plain values."""
    plain = to_dict(config)
    # an option of a later version, switched off, names no other bridge
    layout = {
        k: v
        for k, v in plain["layout"].items()
        if k != "max_tokens" and not (k == "text_budget" and v is None)
    }
    return {"bridge": plain["bridge"], "layout": layout, "fingerprints": dict(fingerprints)}


def _place(
    config: Config, run_dir: Path, before: str | None, init_from: str | None
) -> tuple[Path, str]:
    """Where the bridge is (checkpoints or statistics of a stage, or an exported bridge), and how
    it began.
    """
    if init_from is not None:
        return _of_another(init_from), f"the bridge in {init_from}"
    names = list(config.stages)
    trains = [n for n in names if config.stages[n].train is not None]
    done = [n for n in trains if before is None or names.index(n) < names.index(before)]
    where = f"stages.{before}" if before is not None else str(run_dir)
    first = config.stages[trains[0]].train if trains else None
    brought = None if first is None else first.init_from
    origin = "from random initialisation"
    if brought is not None:
        origin = f"started from the bridge in {brought}"
    if done:
        return checkpoint_root(run_dir, done[-1]), origin
    if brought is not None:
        return _of_another(brought), origin
    fitted = _fitted_file(config, run_dir, before)
    if fitted is not None:
        return fitted, f"fitted in closed form by stages.{fitted.stem}, without training"
    lacks = still_to_train(config)
    if not trains:
        raise UserError(f"{where}: no stage trains a bridge, and `latent` needs one{lacks}")
    raise UserError(
        f"{where}: no train stage before it, and `latent` needs a trained bridge{lacks}"
    )


def is_fitted(config: Config, before: str | None = None) -> bool:
    """Whether a `calibrate` stage determines the whole bridge, so that none has to train it.

    Args:
        config: config of the run.
        before: only stages before this one count; None: all.
    """
    return (
        config.bridge is not None
        and to_be_trained(config.bridge) is None
        and calibrate_before(config.stages, before) is not None
    )


def still_to_train(config: Config) -> str:
    """Why a bridge that is fitted in closed form is not ready for use by that; "" for others."""
    if config.bridge is None or not fits(config.bridge):
        return ""
    part = to_be_trained(config.bridge)
    if part is None:
        return ": no calibrate stage before it"
    what = "reader" if closed_form(config.bridge) is None else "compressor"
    return f": {part} starts at random, and calibrate fits the {what} alone"


def _fitted_file(config: Config, run_dir: Path, before: str | None = None) -> Path | None:
    """The statistics that determine the whole bridge; None: it has to be trained."""
    stage = calibrate_before(config.stages, before)
    if stage is None or not is_fitted(config, before):
        return None
    return statistics.path_of(run_dir, stage)


def _of_another(directory: str) -> Path:
    path = Path(directory)
    return path if is_exported(path) else last_trained(path)


def config_at(directory: Path) -> Config:
    """The config of a run, or the one that an exported bridge was trained with.

    Raises:
        UserError: there is neither.
    """
    exported = is_exported(directory)
    if not exported:
        return read_config(directory)
    plain = trained_config(directory)
    try:
        return from_dict(plain)
    except UserError as error:
        raise UserError(f"{directory / ABOUT}: config: {error}") from error


def saved_at(directory: Path) -> dict[str, Any]:
    """What a run's bridge, or an exported one, says of the frozen models that it was trained with:
    `fingerprints`, and their `format` and `weights`.

    Raises:
        UserError: nothing was trained yet.
    """
    if is_exported(directory):
        return about_bridge(directory)
    root = last_trained(directory)
    if root.suffix == FITTED:
        return statistics.load_any(root)[1]
    for step in steps(root):
        try:
            return dict(read_meta(root / str(step))["identity"])
        except (KeyError, TypeError, ValueError):  # damaged: `load_trained` says so
            continue
    raise UserError(f"{root}: no checkpoint; run the stage that trains it first")


def layout_at(config: Config, before: str | None = None) -> LayoutConfig:
    """The layout of the last train stage.

    Args:
        config: config of the run.
        before: only stages before this one count; None: all.
    """
    names = list(config.stages)
    count = len(names) if before is None else names.index(before)
    trains = [config.stages[n].train for n in names[:count]]
    last = next((t for t in reversed(trains) if t is not None), None)
    return config.layout if last is None or last.layout is None else last.layout


def _layout_of(config: Mapping[str, Any], stage: str) -> LayoutConfig | None:
    """The layout of a train stage, from the plain values of a config; None: unknown."""
    own = (config.get("stages", {}).get(stage, {}).get("train") or {}).get("layout")
    plain = own or config.get("layout")
    return None if plain is None else build(LayoutConfig, plain)


def last_trained(run_dir: Path) -> Path:
    """The checkpoints of a run's last train stage; without one the statistics that determine its
    bridge.

    Raises:
        UserError: there is no run, or it trained nothing.
    """
    config = read_config(run_dir)
    trains = [n for n, s in config.stages.items() if s.train is not None]
    if trains:
        return checkpoint_root(run_dir, trains[-1])
    fitted = _fitted_file(config, run_dir)
    if fitted is None:
        raise UserError(f"{run_dir}: no stage of that run trains a bridge{still_to_train(config)}")
    return fitted


def check_frozen(
    saved: Mapping[str, Any], pipeline: Pipeline, home: Path, some: bool = False
) -> None:
    """Raises UserError if a bridge was trained between other frozen models.

    Args:
        saved: what its file holds: `fingerprints`, and their `format` and `weights`.
        pipeline: the models of this run.
        home: the run or exported bridge, for messages.
        some: whether models that the bridge does not know, or this run, are left out.
    """
    trained: Mapping[str, str] = saved.get("fingerprints", {})
    here = comparable(saved, pipeline.fingerprints, pipeline.weights, home)
    if "models" in saved and pipeline.models is not None:
        here = agreed(saved, here, pipeline.models(), pipeline.same_model, home)
    names = trained.keys() & here.keys() if some else trained.keys() | here.keys()
    for name in sorted(names):
        if trained.get(name) != here.get(name):
            same = saved.get("weights", {}).get(name) == pipeline.weights.get(name)
            only = same and name in pipeline.weights
            raise UserError(
                f"{name}: the bridge was trained with frozen weights and tokenizer "
                f"{trained.get(name, 'absent')}, these are {here.get(name, 'absent')}"
                f"{' (only its tokenizer or chat template is another)' if only else ''}; "
                "use the models of the run"
            )
