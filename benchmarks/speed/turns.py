"""Processes that prepare side by side and measure one after another, by locks on files.

While models are made, all hold a share of the lock; who compiles and measures holds it alone, so
that neither the compiler's own timings nor a measurement has company. Without a file every call
here does nothing.
"""

from __future__ import annotations

import fcntl
import os

_held: list[int] = []
_shared: list[int] = []


def enter(*paths: str | None) -> None:
    """Begins to prepare, once nobody measures.

    Args:
        paths: the locks' files, in one order for all processes: one for each device, or one for
            all; None: there are no others.
    """
    for path in filter(None, paths):
        _held.append(os.open(path, os.O_RDWR | os.O_CREAT))  # closed as the process ends
        fcntl.flock(_held[-1], fcntl.LOCK_SH)


def before(path: str | None) -> None:
    """Holds a share of a lock until the process ends: those that ask for it alone come after.

    Args:
        path: the lock's file; None: there is none.
    """
    if path is not None:
        _shared.append(os.open(path, os.O_RDWR | os.O_CREAT))
        fcntl.flock(_shared[-1], fcntl.LOCK_SH)


def leave() -> None:
    """Lets others measure meanwhile; for what takes long and hardly uses the device."""
    for held in _held:
        fcntl.flock(held, fcntl.LOCK_UN)


def alone() -> None:
    """Waits until nobody prepares or measures, and holds the locks until the process ends."""
    leave()  # of several locks nobody holds one while it waits for an earlier one
    for held in _held:
        fcntl.flock(held, fcntl.LOCK_EX)
