"""`lw-jax compare`: runs side by side on the same rows."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax.commands._ends import writable
from lw_jax.commands.base import Command, Parser


def run(given: Namespace) -> int:
    """Prints the tables and writes the page."""
    writable(given.out, "compare")
    from rich.console import Console

    from lw_jax.report import compare

    found = compare.compare([Path(one) for one in given.runs])
    compare.show(found, Console(), given.metric)
    print(compare.write(found, Path(given.out)))
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="of a run, or of its evaluation; two or more"
    )
    parser.add_argument(
        "--metric", choices=("em", "f1", "nll"), default="em", help="in the terminal's table"
    )
    parser.add_argument("--out", default="compare.html", metavar="FILE", help="the page")


COMMAND = Command(
    summary="compare runs on the same rows, with paired intervals",
    about=(
        "Only rows that all of them were evaluated on count. The page has all figures, what\n"
        "differs in the configs, and the curves of training."
    ),
    examples=(
        ("compare runs/facts runs/facts_43", "into compare.html"),
        ("compare runs/a runs/b runs/c --metric=f1 --out=abc.html", "three, by F1"),
        ("compare runs/a/at_8 runs/a", "an evaluation of a stage before the last, and the last"),
    ),
    arguments=_arguments,
    run=run,
)
