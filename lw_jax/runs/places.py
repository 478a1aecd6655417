"""Where the models, rows and other bridges of a run or an exported bridge are, from any directory.

A config names them as the person who started the run did: often by a path that begins where the run
was started. Such a path is looked up from the current directory first, then from the
directory of the run or bridge and from each one above it, the nearest first, and last among what
ships. So `zoo/bridges/facts`, whose models are `zoo/tiny-llama` and `zoo/tiny-mistral`, works from
anywhere, and so does a run of theirs that was moved.
A model that is found is used only if its fingerprint is that of the model of the run.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lw_jax.config.schema import Config, StageConfig
from lw_jax.data.files import Names
from lw_jax.data.source import FileSource
from lw_jax.errors import UserError
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import SENDER
from lw_jax.utils import shipped
from lw_jax.utils.arguments import path as checked
from lw_jax.utils.registry import chosen

OTHER_RUNS = ("init_from", "teacher", "prompt_from")
"""Keys of a train stage that name another run, or an exported bridge."""


def located(
    config: Config,
    home: Path,
    sender: str | Path | None = None,
    receivers: Mapping[str, str | Path] | None = None,
) -> Config:
    """The config with its models, files of rows and other bridges as they are found from here.

    Args:
        config: config of a run, or of an exported bridge.
        home: its directory.
        sender: the sender's directory or hub name; None: as the config says.
        receivers: the same of receivers by name; those left out are as the config says.

    Raises:
        UserError: a model is named that the config does not have.
    """
    given = {} if sender is None else {SENDER: str(checked("sender", sender))}
    if receivers is not None and not isinstance(receivers, Mapping):
        raise UserError("receivers: expected a map from the receivers' names to paths")
    for name, place in (receivers or {}).items():
        if name not in config.receivers:
            raise UserError(
                f"receivers: {name!r} is not one of {', '.join(config.receivers)}, which the "
                "bridge was trained for"
            )
        given[name] = str(checked(f"receivers: {name}", place))
    if sender is not None and config.sender is None:
        raise UserError("sender: this bridge reads no sender; leave it out")

    def of(name: str, model: ModelConfig) -> ModelConfig:
        return replace(model, path=found(given.get(name) or model.path, home))

    return replace(
        config,
        sender=None if config.sender is None else of(SENDER, config.sender),
        receivers={name: of(name, model) for name, model in config.receivers.items()},
        data=_data(config.data, home),
        stages={name: _stage(stage, home) for name, stage in config.stages.items()},
    )


def _stage(stage: StageConfig, home: Path) -> StageConfig:
    if train := stage.train:
        tasks = {n: replace(task, data=_data(task.data, home)) for n, task in train.tasks.items()}
        others: dict[str, Any] = {k: _other(getattr(train, k), home) for k in OTHER_RUNS}
        own = replace(train, data=_data(train.data, home), tasks=tasks)
        return replace(stage, train=replace(own, **others))
    if evaluate := stage.evaluate:
        rivals = {name: str(_other(path, home)) for name, path in evaluate.rivals.items()}
        start = _other(evaluate.init_from, home)
        rows = _data(evaluate.data, home)
        return replace(stage, evaluate=replace(evaluate, data=rows, rivals=rivals, init_from=start))
    return stage


def _other(path: str | None, home: Path) -> str | None:
    """Another run or bridge, as it is found from here; `~` is the user's home."""
    return None if path is None else os.path.expanduser(found(path, home))


def _data(data: Any, home: Path) -> Any:
    """A data set with its files as they are found from here; None: there is none."""
    parts = {} if data is None else chosen(data)
    for kind, options in parts.items():
        if isinstance(options, FileSource):
            train, evaluation = (_files(names, home) for names in (options.train, options.eval))
            there = replace(options, train=train or options.train, eval=evaluation)
            return replace(data, **{kind: there})
    return data


def _files(names: Names | None, home: Path) -> Names | None:
    if names is None or isinstance(names, str):
        return names and found(names, home)
    return tuple(found(name, home) for name in names)


def found(path: str, home: Path) -> str:
    """A directory, a file or a pattern for files, seen from here; a hub name, or what is nowhere,
    as it is."""
    plain = Path(path).expanduser()
    if plain.is_absolute() or _exists(plain):
        return path
    whole = home.resolve()
    above = (place / plain for place in (whole, *whole.parents))
    return next((str(place) for place in above if _exists(place)), shipped.found(path))


def _exists(path: Path) -> bool:
    text = str(path)
    return path.exists() or (glob.has_magic(text) and any(glob.iglob(text, recursive=True)))
