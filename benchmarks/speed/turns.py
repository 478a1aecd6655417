"""Processes that prepare side by side and measure one after another, by a lock on a file.

While models are made, all hold a share of the lock; who compiles and measures holds it alone, so
that neither the compiler's own timings nor a measurement has company. Without a file every call
here does nothing.
"""

from __future__ import annotations

import fcntl
import os

_held: list[int] = []


def enter(path: str | None) -> None:
    """Begins to prepare, once nobody measures.

    Args:
        path: the lock's file, which all processes share; None: there are no others.
    """
    if path is not None:
        _held.append(os.open(path, os.O_RDWR | os.O_CREAT))  # closed as the process ends
        fcntl.flock(_held[0], fcntl.LOCK_SH)


def leave() -> None:
    """Lets others measure meanwhile; for what takes long and hardly uses the device."""
    if _held:
        fcntl.flock(_held[0], fcntl.LOCK_UN)


def alone() -> None:
    """Waits until nobody prepares or measures, and holds the lock until the process ends."""
    if _held:
        fcntl.flock(_held[0], fcntl.LOCK_EX)
