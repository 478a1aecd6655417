"""Standard output and error, whatever they can show, and whoever reads them."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

NOBODY_READS = 141
"""The exit code of a command whose output nobody reads to its end (`lw-jax configs | head`), as of
other programs: 128 and the number of SIGPIPE."""


def never_fails_to_encode() -> None:
    """Characters that the terminal or file cannot hold (`PYTHONIOENCODING=ascii`, a path that is no
    UTF-8) are written as escapes from now on, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def written() -> None:
    """Has what was printed written now, so that an error is not met while Python ends.

    Raises:
        OSError: it cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def nobody_reads(error: BaseException) -> bool:
    """Whether an error says that nobody reads the output any more. Then what would still be printed
    goes nowhere, without a word.

    Args:
        error: as it was caught; of Rich, which ends the process on a closed pipe, its SystemExit.
    """
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _is_closed(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    try:
        looked_at = select.poll()
        looked_at.register(stream.fileno(), 0)  # type: ignore[union-attr]
        return any(event & select.POLLERR for _, event in looked_at.poll(0))
    except (OSError, ValueError, AttributeError):  # it is no file
        return False
