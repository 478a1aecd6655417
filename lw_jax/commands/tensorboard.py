"""`lw-jax tensorboard`: events of a run, made of its files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax.commands.base import Command, Parser


def run(given: Namespace) -> int:
    """Writes them, and prints their folder."""
    from lw_jax.results.tensorboard import write_events

    print(write_events(Path(given.run)))
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", help="of a run")


COMMAND = Command(
    summary="make TensorBoard events of a run",
    about=(
        "Scalars of training; of the evaluation the table, rows of text and hyperparameters.\n"
        "With `tensorboard: true` a train stage writes its scalars and samples while it trains."
    ),
    examples=(("tensorboard runs/quickstart", "into runs/quickstart/tensorboard"),),
    arguments=_arguments,
    run=run,
)
