"""The phases of a stage: stretches of steps with rows of one level, hence batches of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lw_jax.train.config import Level


@dataclass(frozen=True)
class Phase:
    """A run of steps with the same rows and the same ratio.

    Attributes:
        index: its number.
        level: of the rows; None: as the data says.
        start: its first step.
        stop: the step after its last.
        ratio: of the bridge; None: any of its own.
    """

    index: int
    level: int | None
    start: int
    stop: int
    ratio: float | None = None


def phases_of(curriculum: Sequence[Level], steps: int) -> tuple[Phase, ...]:
    """The phases of a curriculum; empty ones (a share of less than a step) are left out."""
    if not curriculum:
        return (Phase(0, None, 0, steps),)
    bounds, total = [0], 0.0
    for part in curriculum:
        total += part.share
        bounds.append(round(steps * total))
    bounds[-1] = steps
    found = [
        Phase(i, part.level, bounds[i], bounds[i + 1], part.ratio)
        for i, part in enumerate(curriculum)
        if bounds[i + 1] > bounds[i]
    ]
    return tuple(found)
