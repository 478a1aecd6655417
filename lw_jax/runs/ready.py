"""What a run needs before its first step: shapes that fit, bridges to start from, a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import jax
from jax.sharding import Mesh

from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.mesh import make_mesh
from lw_jax.models.spec import FrozenSpec
from lw_jax.pipeline import Pipeline
from lw_jax.runs.abstract import AbstractStep, abstract_bridge, abstract_models, abstract_step
from lw_jax.runs.directory import check_directory, run_directory
from lw_jax.runs.frozen import prints_of, tokenizers_of
from lw_jax.runs.trained import load_trained
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.config import TrainConfig
from lw_jax.train.plan import Plan
from lw_jax.train.reach import check_reach
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import BatchKind


def check_free(config: Config) -> None:
    """Checks that the run directory is there for this config, or can be made; nothing is left.

    Raises:
        UserError: it holds something else, or it cannot be made.
    """
    check_directory(config)
    path = run_directory(config).absolute()
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "not writable")
    except OSError as error:
        raise UserError(
            f"run_dir: cannot write in {run_directory(config)}: {error.strerror}; "
            "give another --run_dir"
        ) from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def traced(
    config: Config,
    train: TrainConfig,
    specs: Mapping[str, FrozenSpec],
    lengths: Mapping[str, int],
    mesh: Mesh,
    step: bool,
) -> AbstractStep:
    """A train stage's step from shapes.

    Args:
        config: config of the run.
        train: config of the stage.
        specs: the frozen models by name.
        lengths: tokens of each part of a batch.
        mesh: the device mesh.
        step: whether the whole step is traced, or its parameters and optimiser alone.

    Raises:
        UserError: parts do not fit each other, `train_only` matches nothing, or no gradient
            reaches what is trained.
    """
    try:
        found = abstract_step(config, train, specs, lengths, mesh)
        if step:
            check_trains(config, train, specs, lengths, found)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"its parts do not fit: {type(error).__name__}: {error}") from error
    return found


def check_trains(
    config: Config,
    train: TrainConfig,
    specs: Mapping[str, FrozenSpec],
    lengths: Mapping[str, int],
    first: AbstractStep,
) -> None:
    """Checks that a train stage trains something.

    Args:
        config: config of the run.
        train: config of the stage.
        specs: the frozen models by name.
        lengths: tokens of each part of a batch.
        first: the stage's first step; others are traced only where it trains nothing.

    Raises:
        UserError: no gradient reaches what is trained.
    """
    assert config.bridge is not None
    kinds: tuple[BatchKind, ...] = ("latent",) if train.text_batches is None else ("latent", "text")
    mesh = make_mesh(config.mesh)

    def steps() -> Iterator[tuple[Plan, jax.stages.Traced]]:
        yield first.plan, first.traced
        for own in train.each().values():
            found = chosen(own.objectives or config.objectives).values()
            starts = sorted({c.schedule.start for c in found if c.schedule.start < train.steps})
            for at, kind in product(starts, kinds):
                other = abstract_step(config, own, specs, lengths, mesh, kind, at)
                if other.plan != first.plan and other.plan.objectives:
                    yield other.plan, other.traced

    check_reach(steps(), abstract_bridge(config, specs), first.trained)


def check_parts(config: Config, specs: Mapping[str, FrozenSpec]) -> None:
    """Checks from shapes that the bridge's parts fit each other and the frozen models.

    Args:
        config: config of the run.
        specs: the frozen models by name.

    Raises:
        UserError: they do not.
    """
    jax.eval_shape(abstract_bridge(config, specs).init, jax.random.key(0))


def abstract_pipeline(
    config: Config, specs: Mapping[str, FrozenSpec], mesh: Mesh, layout: LayoutConfig
) -> Pipeline:
    """The pipeline of a stage from shapes: its models have no weights, and are not measured.

    Args:
        config: config of the run.
        specs: the frozen models by name.
        mesh: the device mesh.
        layout: layout of the stage.
    """
    assert config.bridge is not None
    prints, weights = prints_of(config, specs)
    return Pipeline(
        layout=layout,
        bridge=abstract_bridge(config, specs),
        frozen=abstract_models(config, specs, mesh, layout),
        sources=tokenizers_of(config.bridge, specs),
        receivers={name: specs[name].tokenizer for name in config.receivers},
        fingerprints=prints,
        weights=weights,
        mesh=mesh,
    )


def check_start(
    config: Config,
    init_from: str,
    only: tuple[str, ...],
    specs: Mapping[str, FrozenSpec],
    mesh: Mesh,
) -> None:
    """Checks that a stage can start from another run's bridge, or from an exported one.

    Args:
        config: config of the run.
        init_from: where the bridge is.
        only: components to start from; empty: all.
        specs: the frozen models by name.
        mesh: the device mesh.

    Raises:
        UserError: it is of another architecture, between other models, lacks a component, or is
            damaged.
    """
    pipeline = abstract_pipeline(config, specs, mesh, config.layout)
    load_trained(config, run_directory(config), pipeline, init_from=init_from, only=only)
