"""Order and batches: which rows are in which step, prepared ahead by worker processes.

grain decides the order, so nothing of a stream is ever saved: batch(step) is a pure function of
(seed, stage, step), and a run that goes on at step n begins its iteration there.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from lw_jax.config.checks import at_least
from lw_jax.errors import UserError

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Batch = TypeVar("Batch")


class Groups(Protocol[Item_co]):
    """Contexts by index, each with all that is asked about it; `Rows` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Item_co, ...]: ...


@dataclass(frozen=True)
class Stream(Generic[Item, Batch]):
    """Batches of rows without end, shuffled anew each epoch.

    A batch has no context twice, unless there are fewer contexts than `batch_size`; what is left
    over at the end of an epoch waits for the next one's shuffle.

    Args:
        rows: contexts; must be picklable where there are workers, as must `collate`.
        collate: `batch_size` groups of `questions` items each, to a batch.
        questions: asked of each context in a step, chosen at random; where a context has fewer
            they come repeatedly. 0: all of them, as the rows give them.
        seed, stage: of the order; each stage of a run has its own.
        workers: processes that prepare batches ahead; 0: a thread does.
    """

    rows: Groups[Item]
    collate: Callable[[list[tuple[Item, ...]]], Batch]
    batch_size: int
    seed: int = 0
    stage: str = ""
    questions: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "questions", "workers")
        if not len(self.rows):
            raise UserError("data: no rows to make batches of")

    def indices(self, step: int) -> list[int]:
        """The rows of a step."""
        return list(self._order[step])

    def items(self, step: int) -> list[tuple[Item, ...]]:
        """What `collate` gets in a step."""
        return self._pick(step, self.indices(step))

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of (seed, stage, step)."""
        return self.collate(self.items(step))

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of steps start, start + 1, ..., stop - 1, prepared ahead; same as `batch`."""
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain asks for its flags as soon as there are workers
            flags.FLAGS.mark_as_parsed()
        steps = self._order.map_with_index(self._make).slice(slice(start, stop))
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if self.workers:
            options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
            # Batches come through pipes: /dev/shm is small in containers, and its arrays would
            # outlive the iterator in the hands of whoever holds a batch.
            pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            batches = grain.experimental.WithOptionsIterDataset(batches, pipes)
        iterator = iter(batches)
        try:
            yield from iterator
        finally:
            iterator.close()

    @cached_property
    def _order(self) -> Any:
        """A grain dataset: step -> row indices."""
        import grain

        digest = hashlib.blake2b(f"{self.seed}/{self.stage}".encode(), digest_size=4).digest()
        rows = grain.MapDataset.range(len(self.rows)).shuffle(int.from_bytes(digest, "big"))
        if len(self.rows) < self.batch_size:
            return rows.repeat().batch(self.batch_size, batch_fn=list)
        return rows.batch(self.batch_size, drop_remainder=True, batch_fn=list).repeat()

    def _make(self, step: int, indices: Sequence[int]) -> Batch:
        return self.collate(self._pick(step, indices))

    def _pick(self, step: int, indices: Sequence[int]) -> list[tuple[Item, ...]]:
        """The rows, each with `questions` of its items."""
        rng = random.Random(f"{self.seed}/{self.stage}/{step}")
        picked = []
        for index in indices:
            group = self.rows[int(index)]
            if self.questions and len(group) != self.questions:
                order = rng.sample(group, len(group))
                group = tuple(order[i % len(order)] for i in range(self.questions))
            picked.append(group)
        return picked


def _start_worker(worker: int, workers: int) -> None:
    """A worker keeps to its own core, and ends when a killed run leaves it alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
