"""Where the models of a run or of an exported bridge are, seen from any directory.

A config names its models as the person who started the run did: often by a path that begins where
the run was started. Such a path is looked up from the current directory first, then from the
directory of the run or bridge and from each one above it, the nearest first. So
`zoo/bridges/facts`, whose models are `zoo/tiny-llama` and `zoo/tiny-mistral`, works from anywhere.
What is found is used only if its fingerprint is that of the model of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import SENDER
from lw_jax.utils.arguments import path as checked


def located(
    config: Config,
    home: Path,
    sender: str | Path | None = None,
    receivers: Mapping[str, str | Path] | None = None,
) -> Config:
    """The config with its models' directories as they are found from here.

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
        return replace(model, path=given.get(name) or found(model.path, home))

    return replace(
        config,
        sender=None if config.sender is None else of(SENDER, config.sender),
        receivers={name: of(name, model) for name, model in config.receivers.items()},
    )


def found(path: str, home: Path) -> str:
    """A model's directory or file, seen from here; a hub name, or what is nowhere, as it is."""
    plain = Path(path).expanduser()
    if plain.is_absolute() or plain.exists():
        return path
    whole = home.resolve()
    above = (place / plain for place in (whole, *whole.parents))
    return next((str(place) for place in above if place.exists()), path)
