"""The frozen models of a stage: which, how much of each, and the tokenizers of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lw_jax.bridge.config import BridgeConfig
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Frozen, FrozenDecoder
from lw_jax.models.spec import SENDER, FrozenSpec
from lw_jax.models.stored import About, about, same_model
from lw_jax.text.collate import Sources
from lw_jax.text.tokenizer import Tokenizer

_warned: set[str] = set()
Make = Callable[[FrozenSpec, int | None, bool], Frozen]
"""(spec, layers, head) -> model: `FrozenSpec.load` or `.abstract` on a mesh."""


def make_sender(config: Config, specs: Mapping[str, FrozenSpec], make: Make) -> Frozen | None:
    """The sender of a run's source: its layers up to the highest tap, without an output head.

    Args:
        config: config of the run.
        specs: the frozen models by name.
        make: makes a model from its spec.
    """
    if config.sender is None:
        return None
    return make(specs[SENDER], sender_layers(config, specs), False)


def make_receivers(
    config: Config, specs: Mapping[str, FrozenSpec], make: Make
) -> dict[str, FrozenDecoder]:
    """The receivers of a run, complete.

    Args:
        config: config of the run.
        specs: the frozen models by name.
        make: makes a model from its spec.
    """
    found = {}
    for name in config.receivers:
        model = make(specs[name], None, True)
        assert isinstance(model, FrozenDecoder)  # `open_model` opens no other receiver
        found[name] = model
    return found


def sender_layers(config: Config, specs: Mapping[str, FrozenSpec]) -> int:
    """Number of the sender's layers that a run's source reads."""
    assert config.bridge is not None
    return config.bridge.sender_layers(sender_arch(specs))


def prints_of(
    config: Config, specs: Mapping[str, FrozenSpec]
) -> tuple[dict[str, str], dict[str, str]]:
    """Fingerprints of models by name, and those of their weights alone (format 1): a sender's are
    of the layers that the run's source reads.

    Args:
        config: config of the run.
        specs: the models.
    """
    whole, weights = {}, {}
    for name, spec in specs.items():
        layers = sender_layers(config, specs) if name == SENDER else None
        part, end = (layers, name != SENDER), "" if layers is None else f"@{layers}"
        whole[name] = f"{spec.fingerprint(*part)}{end}"
        weights[name] = f"{spec.weights_print(*part)}{end}"
    return whole, weights


def about_models(config: Config, specs: Mapping[str, FrozenSpec]) -> dict[str, dict[str, str]]:
    """What each model is, and how it is stored; of a sender the layers that the run's source reads.

    Args:
        config: config of the run.
        specs: the models by name.
    """
    found = {}
    for name, spec in specs.items():
        layers = sender_layers(config, specs) if name == SENDER else None
        found[name] = about(spec, layers, name != SENDER)
    return found


def agreed(
    saved: Mapping[str, Any],
    prints: Mapping[str, str],
    models: Mapping[str, About],
    others: bool,
    home: Path,
) -> dict[str, str]:
    """Fingerprints of a run's models, with that of training for each that is the same model stored
    otherwise; says so.

    Args:
        saved: what a bridge's file holds: `fingerprints`, and `models`, if it is of this version.
        prints: of this run's models.
        models: what they are, and how they are stored.
        others: whether a model may be stored otherwise (`fingerprint: same_model`).
        home: the bridge, for messages; it is warned of once.

    Raises:
        UserError: a model is stored otherwise, and may not be.
    """
    found = dict(prints)
    for name, mine in models.items():
        theirs: About = saved.get("models", {}).get(name, {})
        trained = saved.get("fingerprints", {}).get(name)
        if trained is None or not same_model(theirs, mine):
            continue
        if (trained, theirs["stored"]) == (prints.get(name), mine["stored"]):
            continue
        as_it_was = theirs["stored"]
        if as_it_was == mine["stored"]:
            as_it_was += " with other bytes (or another chat template)"
        words = f"{name}: stored as {mine['stored']}, the bridge was trained with {as_it_was}"
        if not others:
            raise UserError(
                f"{words}; config, shapes and tokenizer are the same: fingerprint: same_model "
                "takes it, with a warning (measure what it costs)"
            )
        if (line := f"warning: {home}: {words}; measure what that costs") not in _warned:
            _warned.add(line)
            print(line)
        found[name] = trained
    return found


def sender_arch(specs: Mapping[str, FrozenSpec]) -> AnyArch | None:
    """The sender's architecture, with all of its layers; None: there is no sender."""
    return specs[SENDER].arch if SENDER in specs else None


def tokenizers_of(
    bridge: BridgeConfig,
    specs: Mapping[str, FrozenSpec],
    receivers: Mapping[str, Tokenizer] | None = None,
) -> Sources:
    """The tokenizers of a bridge's source, by the views' keys in a batch.

    Args:
        bridge: config of the bridge.
        specs: the sender, and the receivers unless `receivers` has their tokenizers.
        receivers: the receivers' tokenizers by name; None: of `specs`.
    """
    own = {n: s.tokenizer for n, s in specs.items()} if receivers is None else receivers
    found = bridge.tokenizers(specs[SENDER].tokenizer if SENDER in specs else None, own)
    return {bridge.batch_key(name): one for name, one in found.items() if one is not None}
