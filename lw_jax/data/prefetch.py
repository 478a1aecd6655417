"""Batches prepared ahead, in order, by a thread or by worker processes.

A process that dies while it writes a batch leaves half a message in its pipe. grain's workers then
leave the reader waiting for ever, in `next` and in `close`; and a SIGTERM to a whole job reaches
the workers as well. Here only the reader holds the other end of each pipe: if a worker dies, the
reader sees the end of the pipe; if the reader dies, the pipe breaks. Workers ignore SIGTERM, since
the run that started them decides when they end.
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
"""Seconds to wait for a killed worker."""


def ahead(
    make: Callable[[int], T], start: int = 0, stop: int | None = None, workers: int = 0
) -> Iterator[T]:
    """make(start), make(start + 1), ..., make(stop - 1), prepared ahead.

    Worker processes begin at once, and not when the first is taken.

    Args:
        make: a pure function of its number; must be picklable if there are workers.
        start: the first number.
        stop: one beyond the last number; None: no end.
        workers: number of processes; 0: a thread of this one.

    Raises:
        RuntimeError: a worker died.
    """
    if not workers:
        return _from_thread(make, start, stop)
    made = _from_workers(make, start, stop, workers)
    next(made)  # starts them
    return made


def _from_thread(make: Callable[[int], T], start: int, stop: int | None) -> Iterator[T]:
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
    """Worker i of n makes numbers start + i, start + i + n, ...; None comes before the first."""
    spawn = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[Any] = []
    # Arguments of a process are written while it starts, and the next one would wait for that.
    maker = pickle.dumps(make, pickle.HIGHEST_PROTOCOL)
    giving = threading.Thread(target=_give, args=(pipes, maker), daemon=True)
    del maker

    def end() -> None:
        for process in processes:
            process.kill()  # it holds nothing that can be lost
        for process in processes:
            process.join(PATIENCE)
        if giving.ident is not None:
            giving.join(PATIENCE)
        for pipe in pipes:
            pipe.close()

    # A generator that is never closed must not leave multiprocessing waiting for its workers.
    atexit.register(end)
    try:
        for i in range(workers):
            ours, theirs = spawn.Pipe()
            pipes.append(ours)
            process = spawn.Process(
                target=_work, args=(theirs, start + i, stop, workers), daemon=True
            )
            process.start()
            processes.append(process)
            theirs.close()  # now only the worker holds it
        giving.start()
        yield None
        numbers = count(start) if stop is None else range(start, stop)
        for turn, _ in enumerate(numbers):
            yield _receive(pipes[turn % workers], processes[turn % workers])
    finally:
        atexit.unregister(end)
        end()


def _give(pipes: list[Connection], maker: bytes) -> None:
    """Sends the workers what makes batches, as each is there to take it."""
    for pipe in pipes:
        with suppress(OSError):  # it died, as the reader sees
            pipe.send_bytes(maker)


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


def _work(pipe: Connection, start: int, stop: int | None, step: int) -> None:
    """A worker: makes the next batch while the last one waits in the pipe, which first gives the
    function that makes them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker keeps to its own core
    try:
        given = pipe.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)  # the reader is gone
    make: Callable[[int], Any] = pickle.loads(given)
    del given
    made: queue.Queue[bytes] = queue.Queue(1)

    def send() -> None:
        with suppress(OSError):
            while message := made.get():
                pipe.send_bytes(message)
            return
        os._exit(1)  # the reader is gone

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
    """An error as a message; its traceback goes with it as a note."""
    import traceback

    error.add_note("in a process that prepares batches:\n" + traceback.format_exc())
    try:
        return pickle.dumps((False, error))
    except Exception:  # it cannot be pickled
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
