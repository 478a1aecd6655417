"""`lw-jax report`: the page of a finished run, made again."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax.commands.base import Command, Parser


def run(given: Namespace) -> int:
    """Writes `report.html` into the run's directory."""
    from lw_jax.report import page
    from lw_jax.report.read import ADVICE, METRICS
    from lw_jax.utils.files import shown

    home = Path(given.run)
    with shown(home / METRICS, ADVICE):
        print(page.write(home))
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "run", metavar="RUN_DIR", help="of a run, or of its evaluation (RUN_DIR/evaluations/N)"
    )


COMMAND = Command(
    summary="make report.html of a run again",
    about=(
        "One file without network: what was run, the table, curves, slots, rows side by side.\n"
        "Every evaluation writes it; this makes it of what the run's directory holds now."
    ),
    examples=(("report runs/quickstart", "into runs/quickstart/report.html"),),
    arguments=_arguments,
    run=run,
)
