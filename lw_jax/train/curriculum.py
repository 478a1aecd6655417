"""The phases of a stage: stretches of steps with rows of one level, hence batches of one shape; and
which task each of their steps has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # it imports jax, and worker processes have a `Timetable`
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
        mix: weights of the tasks that share its steps; empty: there are none.
    """

    index: int
    level: int | None
    start: int
    stop: int
    ratio: float | None = None
    mix: Mapping[str, float] = field(default_factory=dict)


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
        Phase(i, part.level, bounds[i], bounds[i + 1], part.ratio, part.mix)
        for i, part in enumerate(curriculum)
        if bounds[i + 1] > bounds[i]
    ]
    return tuple(found)


class Turn(NamedTuple):
    """What a step is about.

    Attributes:
        phase: number of its phase (`Phase.index`).
        task: name of its task; None: the stage has none.
        stream: name of the stream that its batch comes from: that of the task, or of the phase.
        batch: which batch of the stream it is, from 0.
    """

    phase: int
    task: str | None
    stream: str
    batch: int


def turns_of(phases: Sequence[Phase]) -> tuple[Turn, ...]:
    """What each step of a stage is about, in order.

    Tasks take turns so that after every step each has had its share of the phase's steps, to less
    than one step where two tasks share them: the one that is furthest behind comes next (of equals
    the first). A task goes on with its rows in the next phase.
    """
    found: list[Turn] = []
    taken: dict[str, int] = {}
    for phase in phases:
        weights = phase.mix or {str(phase.index): 1.0}
        total = sum(weights.values())
        own = dict.fromkeys(weights, 0)
        for step in range(phase.stop - phase.start):
            behind = {n: w / total * (step + 1) - own[n] for n, w in weights.items() if w}
            name = max(behind, key=lambda n: behind[n])
            own[name] += 1
            batch = taken.get(name, 0)
            taken[name] = batch + 1
            found.append(Turn(phase.index, name if phase.mix else None, name, batch))
    return tuple(found)


@dataclass(frozen=True)
class Timetable:
    """The batches of a stage; picklable if its parts are.

    Attributes:
        turns: what each step is about.
        batch_of: for each stream, which of its batches a number gives.
    """

    turns: tuple[Turn, ...]
    batch_of: Mapping[str, Callable[[int], Any]]

    def batch(self, step: int) -> Any:
        """The batch of a step (0-based)."""
        turn = self.turns[step]
        return self.batch_of[turn.stream](turn.batch)
