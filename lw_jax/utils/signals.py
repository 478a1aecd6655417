"""SIGTERM and Ctrl-C as a request to stop, seen between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

OF_SHELLS = 128
"""What shells add to a signal's number in the exit code of a process that it ended."""
SOON = 0.05
"""Seconds after which a signal that was lost, or came too early, comes again."""
PATIENCE = 20.0
"""Seconds that a signal waits for an import to end."""
_IMPORTS = "<frozen importlib._bootstrap>"


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


class Patience:
    """Waits with a signal while a module is imported: an extension that is interrupted there may
    end the process by SIGABRT."""

    def __init__(self) -> None:
        self._until: float | None = None

    def waits(self, number: int, frame: FrameType | None) -> bool:
        """Whether the signal is to be left alone now; then it comes again, for `PATIENCE` at most.

        Args:
            number: the signal's.
            frame: where it came, as a handler is given it.
        """
        while frame is not None and frame.f_code.co_filename != _IMPORTS:
            frame = frame.f_back
        now = time.monotonic()
        self._until = now + PATIENCE if self._until is None else self._until
        if frame is None or now > self._until:
            return False
        _again(number)
        return True


def _again(number: int) -> None:
    """Sends this process a signal again, soon."""
    timer = threading.Timer(SOON, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextmanager
def never_lost() -> Iterator[None]:
    """While inside, a signal's exception that Python ignores is had again: the handler may run
    where none can be raised, as while memory is freed (after a compilation that is likely: jax
    looks on), and a Ctrl-C would do nothing."""
    before = sys.unraisablehook

    def seen(ignored: sys.UnraisableHookArgs) -> None:
        number = signal.SIGINT if issubclass(ignored.exc_type, KeyboardInterrupt) else 0
        if isinstance(ignored.exc_value, SystemExit) and isinstance(ignored.exc_value.code, int):
            number = ignored.exc_value.code - OF_SHELLS
        if number not in (signal.SIGINT, signal.SIGTERM):
            before(ignored)
            return
        _again(number)

    sys.unraisablehook = seen
    try:
        yield
    finally:
        sys.unraisablehook = before


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
