"""The command `lw-jax`, which is `python -m lw_jax`: dispatches to `lw_jax.commands`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lw_jax import launch
from lw_jax.commands import base
from lw_jax.utils import output


def main(argv: Sequence[str]) -> int:
    """Does what the command line says.

    Args:
        argv: the words after the program's name: a subcommand and its own, or flags of
            `python -m lw_jax.launch`.

    Returns:
        The exit code of the process.
    """
    if not argv or list(argv) in (["-h"], ["--help"], ["help"]):
        return launch.guarded(_overview)
    if argv[0] == "help":
        key = argv[1] == "all" or "." in argv[1]
        argv = ["--help", *argv[1:]] if key else [*argv[1:], "--help"]
    if argv[0].startswith("-"):
        return launch.main(argv)
    return launch.guarded(lambda: base.call(argv[0], argv[1:]))


def _overview() -> int:
    print(base.overview(), end="")
    return launch.OK


def cli() -> None:
    """The entry point."""
    output.never_fails_to_encode()
    launch.set_environment(os.environ)
    raise SystemExit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
