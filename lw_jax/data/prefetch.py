"""Batches prepared ahead, in order, by a thread or by worker processes.

A process that dies while it writes a batch leaves half a message in its pipe. grain's workers then
leave the reader waiting for ever, in `next` and in `close`; and a SIGTERM to a whole job reaches
the workers as well. Here the reader alone holds each pipe's other end, so a worker's death is the
pipe's end, and the reader's death breaks the pipe; workers pass over SIGTERM, since the run that
started them decides when it is done with them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds given to a killed worker to be gone."""


def ahead(
    make: Callable[[int], T], start: int = 0, stop: int | None = None, workers: int = 0
) -> Iterator[T]:
    """make(start), make(start + 1), ..., make(stop - 1), without end if there is no stop.

    Args:
        make: a pure function of its number; must be picklable where there are workers.
        workers: processes; 0: a thread of this one.

    Raises:
        RuntimeError: a worker died.
    """
    if workers:
        yield from _from_workers(make, start, stop, workers)
        return
    import grain

    made = grain.MapDataset.range(start, sys.maxsize if stop is None else stop).map(make)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterator = iter(made.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _from_workers(
    make: Callable[[int], Any], start: int, stop: int | None, workers: int
) -> Iterator[Any]:
    """Worker i of n makes numbers start + i, start + i + n, ..."""
    spawn = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[Any] = []

    def end() -> None:
        for process in processes:
            process.kill()  # it holds nothing that could be lost
        for process in processes:
            process.join(PATIENCE)
        for pipe in pipes:
            pipe.close()

    # A generator that nobody closes must not leave multiprocessing waiting for its workers.
    atexit.register(end)
    try:
        for i in range(workers):
            ours, theirs = spawn.Pipe(duplex=False)
            pipes.append(ours)
            process = spawn.Process(
                target=_work, args=(theirs, make, start + i, stop, workers), daemon=True
            )
            process.start()
            processes.append(process)
            theirs.close()  # now the worker alone can write
        numbers = count(start) if stop is None else range(start, stop)
        for turn, _ in enumerate(numbers):
            yield _receive(pipes[turn % workers], processes[turn % workers])
    finally:
        atexit.unregister(end)
        end()


def _receive(pipe: Connection, process: Any) -> Any:
    try:
        made, value = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        process.join(PATIENCE)
        raise RuntimeError(
            f"a process that prepares batches died (exit code {process.exitcode}); was there too "
            "little memory?"
        ) from None
    if made:
        return value
    raise value


def _work(
    pipe: Connection, make: Callable[[int], Any], start: int, stop: int | None, step: int
) -> None:
    """A worker: makes the next batch while the last one waits in the pipe."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker keeps to its own core
    made: queue.Queue[bytes] = queue.Queue(1)

    def send() -> None:
        with suppress(OSError):
            while message := made.get():
                pipe.send_bytes(message)
            return
        os._exit(1)  # nobody reads any more

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for number in count(start, step) if stop is None else range(start, stop, step):
        try:
            message = pickle.dumps((True, make(number)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            message = _failure(error)
        made.put(message)
    made.put(b"")
    sender.join()


def _failure(error: Exception) -> bytes:
    """An error as a message; where it comes from goes with it as a note."""
    import traceback

    error.add_note("in a process that prepares batches:\n" + traceback.format_exc())
    try:
        return pickle.dumps((False, error))
    except Exception:  # it holds something that cannot leave its process
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
