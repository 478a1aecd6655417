"""The config of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from lw_jax.errors import UserError
from lw_jax.utils.bounds import Checked, Decay, LearningRate
from lw_jax.utils.schedule import Schedule


@dataclass(frozen=True)
class OptimiserConfig(Checked):
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
    lr: LearningRate = 1e-3
    adam_lr: Annotated[float, Ge(0), Le(10)] | None = None
    b1: Decay = 0.9
    b2: Decay = 0.98
    weight_decay: Annotated[float, Ge(0), Le(100)] = 0.0
    clip: Annotated[float, Ge(0), Le(10**6)] = 1.0
    schedule: Schedule = Schedule(shape="cosine", ramp=100, final=0.05)

    def __post_init__(self) -> None:
        for key, none in (("gate", None), ("halve", None), ("on", "all")):
            if getattr(self.schedule, key) != none:
                raise UserError(
                    f"schedule.{key}: a learning rate has none; it belongs to objectives"
                )
