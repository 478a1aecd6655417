"""Order and batches: which rows are in which step, prepared ahead by worker processes.

No state of a stream is saved: batch(step) is a pure function of (seed, stage, step), and a run that
resumes at step n begins its iteration there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from lw_jax.data.prefetch import ahead
from lw_jax.errors import UserError
from lw_jax.utils.checks import at_least

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Batch = TypeVar("Batch")

TRIES = 1000
"""Batches that are drawn for a step until one has a row that can be used."""
IN_MEMORY = 2**20
"""Up to this many rows, the order of an epoch is held in memory."""
WINDOW = 32
"""Batches of an epoch whose rows are put together by length."""


class Groups(Protocol[Item_co]):
    """Contexts by index, each with all that is asked about it; `Rows` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Item_co, ...]: ...


@dataclass(frozen=True)
class Stream(Generic[Item, Batch]):
    """Endless batches of rows, shuffled anew each epoch.

    A batch never contains a context twice, unless there are fewer contexts than `batch_size`; rows
    left over at the end of an epoch are added to the next epoch's shuffle.

    Args:
        rows: contexts; must be picklable if there are workers, and so must `collate`. Rows with a
            method `drawn(index, questions, rng)` make what is asked of a context anew each time.
        collate: makes a batch from `batch_size` groups of `questions` items each.
        batch_size: contexts in a batch.
        seed: seed of the order.
        stage: name of the stage; each stage of a run has its own order.
        questions: number of questions on each context in a step, chosen at random, repeated if a
            context has fewer. 0: all of them, as the rows give them.
        workers: processes that prepare batches ahead; 0: a thread does.
        usable: whether a batch has a row that can be used; for one that has none others are drawn.
            None: every batch can be used. Picklable if there are workers.
        length: about how long a row is. The rows of `WINDOW` batches, shuffled as ever, are then
            put together by length, and these batches shuffled again. None: rows of all lengths are
            in a batch. Picklable if there are workers.
        here: the contexts of a batch that are collated; None: all. Of several processes each makes
            the part that its devices hold.
    """

    rows: Groups[Item]
    collate: Callable[[list[tuple[Item, ...]]], Batch]
    batch_size: int
    seed: int = 0
    stage: str = ""
    questions: int = 1
    workers: int = 0
    usable: Callable[[Batch], bool] | None = None
    length: Callable[[tuple[Item, ...]], int] | None = None
    here: slice | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "questions", "workers")
        if not len(self.rows):
            raise UserError("data: no rows to make batches of")

    def indices(self, step: int) -> list[int]:
        """The rows of a step."""
        n, size = len(self.rows), self.batch_size
        if n < size:
            places = [divmod(step * size + i, n) for i in range(size)]
        else:
            epoch, batch = divmod(step, n // size)
            if self.length is not None:
                begin = batch - batch % WINDOW
                return self._by_length(epoch, begin)[batch - begin]
            places = [(epoch, batch * size + i) for i in range(size)]
        return self._drawn(places)

    def _drawn(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """The rows at places (epoch, place in its order)."""
        n = len(self.rows)
        if n <= IN_MEMORY:
            return [int(_permutation(n, self._key, epoch)[place]) for epoch, place in places]
        return [self._large[epoch * n + place] for epoch, place in places]

    def _by_length(self, epoch: int, begin: int) -> list[list[int]]:
        """The rows of up to `WINDOW` batches of an epoch from `begin` on, each of like lengths."""
        held = self._windows.get((epoch, begin))
        if held is None:
            size = self.batch_size
            end = min(begin + WINDOW, len(self.rows) // size)
            rows = self._drawn([(epoch, place) for place in range(begin * size, end * size)])
            assert self.length is not None
            lengths = np.asarray([self.length(self.rows[row]) for row in rows])
            rows = [rows[i] for i in np.argsort(lengths, kind="stable").tolist()]
            order = np.random.default_rng([self._key, epoch, begin]).permutation(end - begin)
            held = [rows[i * size : (i + 1) * size] for i in order.tolist()]
            self._windows.clear()
            self._windows[epoch, begin] = held
        return held

    def items(self, step: int, again: int = 0) -> list[tuple[Item, ...]]:
        """The input of `collate` in a step: the rows, each with `questions` of its items.

        Args:
            step: the step.
            again: how often rows were drawn for it before; the first are those of `indices`.
        """
        rng = random.Random(f"{self.seed}/{self.stage}/{step}" + (f"/{again}" if again else ""))
        picked = []
        drawn = getattr(self.rows, "drawn", None) if self.questions else None
        for index in self._others(rng) if again else self.indices(step):
            if drawn is not None:
                picked.append(drawn(index, self.questions, rng))
                continue
            group = self.rows[index]
            if self.questions and len(group) != self.questions:
                order = rng.sample(group, len(group))
                group = tuple(order[i % len(order)] for i in range(self.questions))
            picked.append(group)
        return picked

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of (seed, stage, step).

        A step without a row would be no step: such a batch is drawn again.

        Raises:
            UserError: no batch of many has a row that can be used.
        """
        for again in range(TRIES):
            items = self.items(step, again)
            made = self.collate(items if self.here is None else items[self.here])
            if self.usable is None or self.usable(made):
                return made
            if self.here is not None and self.usable(self.collate(items)):
                return made  # the rows that can be used are elsewhere
        raise UserError(
            f"data: none of {TRIES} batches for step {step + 1} of {self.stage} has a row that is "
            "short enough; raise layout.max_tokens, or give shorter texts"
        )

    def _others(self, rng: random.Random) -> list[int]:
        """The rows of a batch that is drawn again."""
        n, size = len(self.rows), self.batch_size
        return rng.sample(range(n), size) if n >= size else rng.choices(range(n), k=size)

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of steps start, start + 1, ..., stop - 1, prepared ahead; same as `batch`."""
        return ahead(self.batch, start, stop, self.workers)

    @property
    def _key(self) -> int:
        """32 bits of the seed and the stage."""
        digest = hashlib.blake2b(f"{self.seed}/{self.stage}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big")

    @cached_property
    def _windows(self) -> dict[tuple[int, int], list[list[int]]]:
        """The window that was put together last."""
        return {}

    @cached_property
    def _large(self) -> Any:
        """grain's shuffle: needs no memory, but walks 2**16 places to find one of few rows."""
        import grain

        return grain.MapDataset.range(len(self.rows)).shuffle(self._key).repeat()


@lru_cache(maxsize=4)
def _permutation(n: int, key: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([key, epoch]).permutation(n)
