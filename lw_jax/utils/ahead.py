"""Work on a list of items by threads that run ahead of who takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from typing import Generic, Self, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Ahead(Generic[K, T]):
    """What threads make of items, to be taken in the order of the items.

    What went wrong with an item is raised when that item's turn comes, so that of several errors
    the first one is seen, in the order of the items. At the end of the `with` block items that were
    not begun are dropped, and work that goes on stops where it next calls its second argument.

    Args:
        work: makes a result, in a thread; its second argument is a function that raises
            CancelledError when nobody waits for the result any more.
        items: each with the bytes of its result.
        limit: bytes that are held at once: of results that are made or being made, and of those
            that were taken and are not yet `released`. A larger result is made alone.
        threads: number of threads.
    """

    def __init__(
        self,
        work: Callable[[K, Callable[[], None]], T],
        items: Iterable[tuple[K, int]],
        limit: int,
        threads: int,
    ) -> None:
        self._work, self._limit = work, limit
        self._waiting = deque(items)
        self._begun: deque[tuple[Future[T], int]] = deque()
        self._ahead = self._taken = 0
        self._ended = Event()
        self._pool = ThreadPoolExecutor(threads, "ahead")

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)

    @property
    def full(self) -> bool:
        """Whether the results that were taken should be released before the next is: they are more
        than half of the limit, or the next one does not fit beside them."""
        if self._taken > self._limit // 2:
            return True
        alone = bool(self._waiting) and not self._begun
        return alone and self._taken > 0 and self._taken + self._waiting[0][1] > self._limit

    def take(self) -> T:
        """The next item's result, when it is there.

        Raises:
            Exception: what its work raised.
            IndexError: all were taken.
        """
        self._begin()
        future, size = self._begun.popleft()
        made = future.result()
        self._ahead -= size
        self._taken += size
        return made

    def release(self) -> None:
        """Says that no result that was taken is held any more."""
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        """Has as many items worked on as may be held."""
        while self._waiting:
            item, size = self._waiting[0]
            if self._begun and self._ahead + self._taken + size > self._limit:
                return
            self._begun.append((self._pool.submit(self._work, item, self._go_on), size))
            self._ahead += size
            self._waiting.popleft()

    def _go_on(self) -> None:
        if self._ended.is_set():
            raise CancelledError
