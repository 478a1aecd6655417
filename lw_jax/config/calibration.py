"""Which statistics a run's bridge needs, and which of its stages measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lw_jax.config.parts import BridgeConfig
from lw_jax.errors import UserError
from lw_jax.registry import chosen
from lw_jax.sources.normaliser import Normaliser, normaliser_of
from lw_jax.sources.pca import Pca, pca_of

if TYPE_CHECKING:
    from lw_jax.config.schema import StageConfig


def normaliser(bridge: BridgeConfig) -> tuple[str, Normaliser] | None:
    """The dotted key and the config of the source's normaliser; None where it has none."""
    ((name, options),) = chosen(bridge.source).items()
    found = normaliser_of(options)
    return None if found is None else (f"bridge.source.{name}.normaliser", found)


def pca(bridge: BridgeConfig) -> tuple[str, Pca] | None:
    """The dotted key and the config of the source's PCA; None where it has none."""
    ((name, options),) = chosen(bridge.source).items()
    found = pca_of(options)
    return None if found is None else (f"bridge.source.{name}.pca", found)


def calibrate_before(stages: Mapping[str, StageConfig], name: str) -> str | None:
    """The nearest `calibrate` stage before a stage."""
    names = list(stages)
    earlier = [n for n in names[: names.index(name)] if stages[n].calibrate is not None]
    return earlier[-1] if earlier else None


def check_calibrated(
    bridge: BridgeConfig, stages: Mapping[str, StageConfig], receivers: Mapping[str, object]
) -> None:
    """Whether the statistics that the bridge needs are there when it starts from nothing.

    Raises:
        UserError: no `calibrate` stage before the first train stage, or an unknown target.
    """
    needed = normaliser(bridge) or pca(bridge)
    if needed is None:
        return
    key, options = needed
    target = options.target if isinstance(options, Normaliser) else None
    if target is not None and target not in receivers:
        raise UserError(
            f"{key}.target: {target!r} is no receiver; there are {', '.join(receivers)}"
        )
    for name, stage in stages.items():
        if stage.train is None:
            continue
        taken = stage.train.init_only or ("source",)
        brought = stage.train.init_from is not None and "source" in taken
        if not brought and calibrate_before(stages, name) is None:
            raise UserError(
                f"{key}: stages.{name} starts without statistics; put a stage with "
                "`calibrate: {}` before it, or init_from a bridge that has them"
            )
        return  # later stages go on from this one
