"""Work that threads do ahead: its order, what it holds, how it ends."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from lw_jax.utils.ahead import Ahead

PATIENCE = 30.0


class Held:
    """What is held: being made, made, or taken and not yet released."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_no_more_is_held_than_allowed(threads: int) -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3] * 4
    held, taken = Held(), 0

    def work(i: int, go_on: object) -> int:
        held.add(sizes[i])
        time.sleep(0.0003 * sizes[i])
        return i

    with Ahead(work, enumerate(sizes), 20, threads) as ahead:
        for i, size in enumerate(sizes):
            if ahead.full:
                held.add(-taken)
                taken = 0
                ahead.release()
            assert ahead.take() == i
            taken += size
        with pytest.raises(IndexError):
            ahead.take()
    assert 10 < held.most <= 20


def test_what_is_larger_than_the_limit_is_made_alone() -> None:
    held = Held()

    def work(size: int, go_on: object) -> int:
        held.add(size)
        return size

    with Ahead(work, [(size, size) for size in (5, 30, 5, 5)], 10, 3) as ahead:
        for size in (5, 30, 5, 5):
            if ahead.full:
                ahead.release()
            assert ahead.take() == size
            held.add(-size)
    assert held.most == 30


def test_several_work_at_once() -> None:
    together = threading.Barrier(3)
    with Ahead(lambda i, _: together.wait(PATIENCE), [(i, 1) for i in range(3)], 9, 3) as ahead:
        assert {ahead.take() for _ in range(3)} == {0, 1, 2}


def test_the_first_error_in_the_order_of_the_items_is_raised() -> None:
    later = threading.Event()

    def work(i: int, go_on: object) -> int:
        if i == 3:
            later.set()
            raise ValueError("third")
        if i == 1:
            assert later.wait(PATIENCE)  # what comes later goes wrong sooner
            raise ValueError("first")
        return i

    with Ahead(work, [(i, 1) for i in range(5)], 9, 4) as ahead:
        assert ahead.take() == 0
        with pytest.raises(ValueError, match="first"):
            ahead.take()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_the_end_stops_work_that_goes_on_and_drops_the_rest(raised: type[BaseException]) -> None:
    begun, stopped = [], []
    both = threading.Barrier(3)

    def work(i: int, go_on: object) -> None:
        begun.append(i)
        both.wait(PATIENCE)
        until = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < until:
                go_on()
                time.sleep(0.001)
        except CancelledError:
            stopped.append(i)
            raise

    def ended() -> None:
        with Ahead(work, [(i, 1) for i in range(9)], 99, 2):
            both.wait(PATIENCE)
            raise raised

    began = time.monotonic()
    with pytest.raises(raised):
        ended()
    assert time.monotonic() - began < PATIENCE / 2
    assert sorted(begun) == sorted(stopped) == [0, 1]
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]
