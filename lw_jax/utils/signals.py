"""SIGTERM and Ctrl-C as a request to stop, seen between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

OF_SHELLS = 128
"""What shells add to a signal's number in the exit code of a process that it ended."""


class Stop:
    """Whether the process was asked to stop.

    Attributes:
        number: the signal that asked, 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number != 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler; a second Ctrl-C ends the process at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def leave(self) -> NoReturn:
        """Ends the process with the code that shells give to the signal: 143 or 130.

        Raises:
            SystemExit: always.
        """
        leave(self.number or signal.SIGTERM)  # another process was asked, of several


def leave(number: int) -> NoReturn:
    """Ends the process as one that a signal ended.

    Raises:
        SystemExit: always.
    """
    raise SystemExit(OF_SHELLS + number)


@contextmanager
def termination() -> Iterator[Stop]:
    """While inside, SIGTERM and a first Ctrl-C only set a flag; the value says whether."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield stop
        return
    before = {
        number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
