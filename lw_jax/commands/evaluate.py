"""`lw-jax evaluate`: evaluates a finished run again, or a bridge that was exported."""

from __future__ import annotations

from argparse import Namespace

from lw_jax import launch
from lw_jax.commands.base import Command
from lw_jax.errors import UserError


def run(given: Namespace) -> int:
    """Evaluates it into a new directory."""
    places = [word for word in given.words[:1] if not word.startswith("-")]
    if not places:
        raise UserError("evaluate: give a run directory first (see lw-jax evaluate --help)")
    return launch.main(["--evaluate", *given.words])


COMMAND = Command(
    summary="evaluate a finished run again, or an exported bridge",
    usage="RUN_DIR [--KEY=VALUE ...]",
    about="A flag names a field of the evaluate stage (--methods, --data...), else of the config.",
    examples=(
        ("evaluate runs/facts", "into runs/facts/evaluations/1"),
        ("evaluate zoo/bridges/facts --rows=200 --methods=[text,latent]", "a bridge that ships"),
    ),
    run=run,
    words=True,
)
