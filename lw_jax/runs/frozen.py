"""Which frozen models a stage has, how much of each, and in whose tokens its source is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lw_jax.bridge.config import BridgeConfig
from lw_jax.config.schema import Config
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Frozen, FrozenDecoder
from lw_jax.models.spec import SENDER, FrozenSpec
from lw_jax.text.collate import Sources

Make = Callable[[FrozenSpec, int | None, bool], Frozen]
"""From a spec, layers and head to the model: `FrozenSpec.load` or `.abstract` on some mesh."""


def make_sender(config: Config, specs: Mapping[str, FrozenSpec], make: Make) -> Frozen | None:
    """The sender of a run's source: its layers up to the highest tap, without an output head."""
    if config.sender is None:
        return None
    return make(specs[SENDER], sender_layers(config, specs), False)


def make_receivers(
    config: Config, specs: Mapping[str, FrozenSpec], make: Make
) -> dict[str, FrozenDecoder]:
    """The receivers of a run, whole."""
    found = {}
    for name in config.receivers:
        model = make(specs[name], None, True)
        assert isinstance(model, FrozenDecoder)  # `open_model` opens no other receiver
        found[name] = model
    return found


def sender_layers(config: Config, specs: Mapping[str, FrozenSpec]) -> int:
    """How many of the sender's layers a run's source reads."""
    assert config.bridge is not None
    return config.bridge.sender_layers(sender_arch(specs))


def sender_arch(specs: Mapping[str, FrozenSpec]) -> AnyArch | None:
    """What the sender is, all of its layers; None where there is none."""
    return specs[SENDER].arch if SENDER in specs else None


def tokenizers_of(bridge: BridgeConfig, specs: Mapping[str, FrozenSpec]) -> Sources:
    """In whose tokens the source of a bridge is read, by the views' keys in a batch."""
    found = bridge.tokenizers(specs[SENDER].tokenizer if SENDER in specs else None)
    return {bridge.batch_key(name): one for name, one in found.items() if one is not None}
