"""The config of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.errors import UserError
from lw_jax.utils.checks import at_least, between
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class OptimiserConfig:
    """The optax chain: clip, AdamW or Muon with Adam for what is no matrix, schedule.

    Args:
        name: `adamw`, or `muon` (matrices by Muon; queries, positions, norms, biases by Adam).
        lr: peak learning rate (of Muon's matrices when `name` is `muon`).
        adam_lr: peak rate of the leaves that Muon leaves to Adam; null: a fifth of `lr`.
        b1, b2: decay of Adam's first and second moment.
        weight_decay: decoupled, on matrices only.
        clip: global gradient norm above which gradients are scaled down; 0 for never.
        schedule: factor of the peak over the steps of the stage.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    adam_lr: float | None = None
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Schedule = Schedule(shape="cosine", ramp=100, final=0.05)

    def __post_init__(self) -> None:
        at_least(self, 0, "lr", "adam_lr", "weight_decay", "clip")
        between(self, 0, 1, "b1", "b2")
        for key, none in (("gate", None), ("on", "all")):
            if getattr(self.schedule, key) != none:
                raise UserError(
                    f"schedule.{key}: a learning rate has none; it belongs to objectives"
                )
