"""What waits is run together: one thread owns the device, and takes what has gathered meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from lw_jax.api.bridge import Answer, Bridge, Question, Text
from lw_jax.serve.metrics import Metrics

T = TypeVar("T")


class FullError(Exception):
    """More would wait than may; later there may be room."""


class TooManyError(Exception):
    """One request asks for more than may ever wait."""


@dataclass(frozen=True, eq=False)
class Job:
    """One thing to run.

    Attributes:
        work: a text to send, a question to ask, or a call.
        done: its result.
        loop: of the thread that awaits it.
    """

    work: Text | Question | Callable[[], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Runs texts and questions in the order in which they came, as many at once as wait."""

    def __init__(self, bridge: Bridge, rows: int, most: int, metrics: Metrics) -> None:
        """Starts the thread.

        Args:
            bridge: runs them.
            rows: at once, at most.
            most: that may wait.
            metrics: counts them.
        """
        self.bridge, self.rows, self.most, self.metrics = bridge, rows, most, metrics
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts and questions that wait."""
        return len(self._jobs)

    async def send(self, texts: Sequence[Text]) -> list[bytes]:
        """Packets of texts that are ready.

        Raises:
            FullError: too many wait.
            TooManyError: these are more than may wait.
        """
        return await self._all(texts)

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions that are ready.

        Raises:
            FullError: too many wait.
            TooManyError: these are more than may wait.
        """
        return await self._all(questions)

    def call(self, work: Callable[[], T]) -> Awaitable[T]:
        """The result of a call on the thread that owns the device.

        Raises:
            FullError: too many wait.
        """
        return self._put([work])[0]

    def close(self) -> None:
        """Ends the thread once it has run what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    async def _all(self, work: Sequence[Any]) -> list[Any]:
        jobs = self._put(work)
        try:
            return await asyncio.gather(*jobs)
        finally:
            for one in jobs:
                one.cancel()

    def _put(self, work: Sequence[Any]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        if len(work) > self.most:
            raise TooManyError(f"{len(work)} texts or questions at once; {self.most} are the most")
        jobs = [Job(one, loop.create_future(), loop) for one in work]
        with self._changed:
            if len(self._jobs) + len(jobs) > self.most:
                raise FullError
            self._jobs.extend(jobs)
            self._changed.notify()
        for job in jobs:
            job.done.add_done_callback(partial(self._forget, job))
        self.metrics.waiting.set(self.waiting)
        return [job.done for job in jobs]

    def _forget(self, job: Job, done: asyncio.Future[Any]) -> None:
        """What nobody waits for any more takes no room."""
        if not done.cancelled():
            return
        with self._changed, suppress(ValueError):  # it may run already
            self._jobs.remove(job)
        self.metrics.waiting.set(self.waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                batch = [self._jobs.popleft() for _ in range(min(self.rows, len(self._jobs)))]
            self.metrics.waiting.set(self.waiting)
            self._run([job for job in batch if not job.done.cancelled()])

    def _run(self, batch: Sequence[Job]) -> None:
        texts = [job for job in batch if isinstance(job.work, Text)]
        questions = [job for job in batch if isinstance(job.work, Question)]
        for jobs, run in ((texts, self.bridge.send), (questions, self.bridge.ask)):
            if jobs:
                self.metrics.rows.observe(len(jobs))
                self._done(jobs, lambda jobs=jobs, run=run: run([job.work for job in jobs]))  # type: ignore[misc]
        for job in batch:
            if callable(job.work):
                work = job.work
                self._done([job], lambda work=work: [work()])  # type: ignore[misc]

    def _done(self, jobs: Sequence[Job], run: Callable[[], Sequence[Any]]) -> None:
        """Runs, and tells those who wait; an error of the run is theirs, and the thread goes on."""
        try:
            results: Sequence[Any] = run()
        except Exception as error:
            for job in jobs:
                job.loop.call_soon_threadsafe(_fail, job.done, error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.loop.call_soon_threadsafe(_tell, job.done, result)


def _tell(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
