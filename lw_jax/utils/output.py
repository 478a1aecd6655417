"""Standard output and error, whatever they can show."""

from __future__ import annotations

import io
import sys


def never_fails_to_encode() -> None:
    """Characters that the terminal or file cannot hold (`PYTHONIOENCODING=ascii`, a path that is no
    UTF-8) are written as escapes from now on, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
