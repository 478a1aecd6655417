"""Schedules over steps: for an objective's weight, a learning rate, latent dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from lw_jax.errors import UserError
from lw_jax.utils.bounds import Checked, Probability, Share, Step

Array = jax.Array


BatchKind = Literal["latent", "text"]
"""What a step trains: the wire, or (in a warm-up) the receiver that reads the text."""


@dataclass(frozen=True)
class Schedule(Checked):
    """A factor over the steps of a stage (docs/design.md section 6, weight schedules).

    Args:
        shape: `constant`; `linear` or `cosine` from 1 at `start + ramp` to `final` at the end.
        start: first step with a non-zero factor (delayed start).
        stop: first step after which the factor is zero again; null for never.
        ramp: steps over which the factor rises linearly from 0 to 1.
        hold: share of the steps after the ramp with a factor of 1, before a decay begins.
        final: factor at the end of a `linear` or `cosine` decay.
        gate: only for an objective's weight: the factor is zero for every batch whose
            reconstruction cosine is not above this.
        halve: only for an objective's weight: the factor is halved for every batch whose
            reconstruction cosine is below this.
        on: only for an objective's weight, in a stage with text batches: the batches it applies to.
    """

    shape: Literal["constant", "linear", "cosine"] = "constant"
    start: Step = 0
    stop: Step | None = None
    ramp: Step = 0
    final: Share = 0.0
    hold: Share = 0.0
    gate: Annotated[float, Ge(-1), Le(1)] | None = None
    halve: Annotated[float, Ge(-1), Le(1)] | None = None
    on: Literal["all", "latent", "text"] = "all"

    def __post_init__(self) -> None:
        if self.stop is not None and self.stop <= self.start:
            raise UserError(
                f"stop: {self.stop} is not after start {self.start}, so the factor is always 0"
            )

    @property
    def by_cosine(self) -> bool:
        """Whether the factor depends on the batch's reconstruction cosine."""
        return self.gate is not None or self.halve is not None

    def ever(self, steps: int) -> bool:
        """Whether the factor can be non-zero in a stage of so many steps."""
        return self.start < steps

    def highest(self, steps: int) -> float:
        """The share of its peak that the ramp reaches in a stage of so many steps."""
        last = steps if self.stop is None else min(steps, self.stop)
        return min(1.0, max(0, last - self.start) / self.ramp) if self.ramp else 1.0

    def active(self, step: int, kind: BatchKind = "latent") -> bool:
        """Whether the factor can be non-zero at `step`: the static part of a step's plan.

        Args:
            step: the step.
            kind: what the step trains.
        """
        if self.on not in ("all", kind):
            return False
        return step >= self.start and (self.stop is None or step < self.stop)

    def __call__(self, step: Array | int, steps: int) -> Array:
        """The factor at one step, float32 scalar.

        Args:
            step: the step.
            steps: number of steps in the stage.
        """
        s = jnp.asarray(step, jnp.float32)
        up = jnp.minimum(1.0, (s - self.start + 1) / self.ramp) if self.ramp else jnp.float32(1.0)
        last = self.stop if self.stop is not None else steps
        begin: float = self.start + self.ramp
        if self.hold:
            begin += self.hold * max(0, last - begin)
        t = jnp.clip((s - begin) / max(1, last - begin), 0.0, 1.0)
        if self.shape == "linear":
            down = 1.0 - (1.0 - self.final) * t
        elif self.shape == "cosine":
            down = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * t))
        else:
            down = jnp.float32(1.0)
        live = (s >= self.start) & (s < last if self.stop is not None else True)
        return jnp.where(live, up * down, 0.0)


@dataclass(frozen=True)
class Rising(Checked):
    """A probability that rises from `start` at the first step to `end`.

    Args:
        start: probability at the first step.
        end: probability after the ramp.
        ramp: steps of the ramp; 0: `end` from the first step on.
    """

    start: Probability
    end: Probability
    ramp: Step = 0

    def __call__(self, step: Array | int) -> Array:
        """The probability at a step, float32 scalar."""
        done = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / self.ramp) if self.ramp else 1.0
        return jnp.float32(self.start) + (self.end - self.start) * done
