"""Batches prepared ahead, in order, by a thread or by grain's worker processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(
    make: Callable[[int], T], start: int = 0, stop: int | None = None, workers: int = 0
) -> Iterator[T]:
    """make(start), make(start + 1), ..., make(stop - 1), without end if there is no stop.

    Args:
        make: a pure function of its number; must be picklable where there are workers.
        workers: processes; 0: a thread of this one.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain asks for its flags as soon as there are workers
        flags.FLAGS.mark_as_parsed()
    made = grain.MapDataset.range(start, sys.maxsize if stop is None else stop).map(make)
    stream = made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if workers:
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, worker_init_fn=_start_worker)
        # Batches come through pipes: /dev/shm is small in containers, and its arrays would
        # outlive the iterator in the hands of whoever holds a batch.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        stream = grain.experimental.WithOptionsIterDataset(stream, pipes)
    iterator = iter(stream)
    try:
        yield from iterator
    finally:
        iterator.close()


def _start_worker(worker: int, workers: int) -> None:
    """A worker keeps to its own core, and ends when a killed run leaves it alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
