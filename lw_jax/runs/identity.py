"""What a run's checkpoints and kept numbers depend on: the config, and the frozen models."""

from __future__ import annotations

from typing import Any

from lw_jax.bridge.config import SOURCE
from lw_jax.config.parse import to_dict
from lw_jax.config.schema import Config
from lw_jax.models.config import ModelConfig
from lw_jax.models.fingerprint import FORMAT
from lw_jax.models.spec import SENDER
from lw_jax.pipeline import Pipeline


def identity(config: Config, name: str, pipeline: Pipeline) -> dict[str, Any]:
    """What a resumed stage must share: the config up to this stage, and the frozen models."""
    plain = to_dict(config)
    names = list(plain["stages"])
    plain["stages"] = {n: plain["stages"][n] for n in names[: names.index(name) + 1]}
    return {
        "config": plain,
        "format": FORMAT,
        "fingerprints": pipeline.fingerprints,
        "weights": pipeline.weights,
        "attention": attention_of(pipeline),  # is recorded, and may differ
    }


def attention_of(pipeline: Pipeline) -> dict[str, str]:
    """The attention implementation that each loaded model uses, by its name."""
    frozen = pipeline.frozen
    sender = {} if frozen.sender is None else {SENDER: frozen.sender.attention}
    return sender | {name: model.attention for name, model in frozen.receivers.items()}


def quants_of(config: Config) -> dict[str, str]:
    """How the matrices of each model are stored, of those that are not stored in full."""
    return {name: m.quant for name, m in models_of(config).items() if m.quant != "none"}


def depends_on(config: Config, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """What the numbers of the frozen models depend on, besides the tokens: those of the source by
    `source`, those of the receivers by their names."""
    models = models_of(config)
    attention = attention_of(pipeline)
    found = {
        name: {
            "model": pipeline.fingerprints[name],
            "dtype": model.dtype,
            "quant": model.quant,
            "attention": attention.get(name),
        }
        for name, model in models.items()
    }
    views = pipeline.bridge.config.views
    read = {one.reads_receiver or (SENDER if one.reads_sender else None) for one in views.values()}
    source = {
        "views": {name: repr(one) for name, one in views.items()},
        "models": {name: found[name] for name in sorted(filter(None, read))},
    }
    return found | {SOURCE: source}


def models_of(config: Config) -> dict[str, ModelConfig]:
    """The frozen models that a config names."""
    return ({} if config.sender is None else {SENDER: config.sender}) | config.receivers
