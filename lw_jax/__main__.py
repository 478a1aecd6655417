"""The command `lw-jax`, which is `python -m lw_jax`: dispatches to `lw_jax.commands`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

STOPPED = 130


def main(argv: Sequence[str]) -> int:
    """Does what the command line says.

    Args:
        argv: the words after the program's name: a subcommand and its own, or flags of
            `python -m lw_jax.launch`.

    Returns:
        The exit code of the process.
    """
    # here, so that Ctrl-C is heeded as early as can be
    from lw_jax import launch
    from lw_jax.commands import base

    if not argv or list(argv) in (["-h"], ["--help"], ["help"]):
        return launch.guarded(_overview)
    if argv[0] == "help":
        key = argv[1] == "all" or "." in argv[1]
        argv = ["--help", *argv[1:]] if key else [*argv[1:], "--help"]
    if argv[0].startswith("-"):
        return launch.main(argv)
    return launch.guarded(lambda: base.call(argv[0], argv[1:]))


def _overview() -> int:
    from lw_jax.commands import base
    from lw_jax.utils.guarded import OK

    print(base.overview(), end="")
    return OK


def _at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process, which has done nothing yet but to load what it needs."""
    os._exit(STOPPED)


def cli() -> None:
    """The entry point."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _at_once)
    from lw_jax import launch

    launch.set_up()
    raise SystemExit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
