"""`lw-jax train`: runs a config's stages in order."""

from __future__ import annotations

from argparse import Namespace

from lw_jax import launch
from lw_jax.commands.base import Command, config_words
from lw_jax.errors import UserError


def run(given: Namespace) -> int:
    """Runs them, or goes on where they were stopped."""
    if not given.words:
        raise UserError("train: give a config file (see lw-jax train --help, lw-jax configs)")
    return launch.main(config_words(given.words))


COMMAND = Command(
    summary="run a config, or go on with a run that was stopped",
    usage="CONFIG [CONFIG ...] [--KEY=VALUE ...]",
    about=(
        "Later files override the first, and flags override all of them. The same command goes on\n"
        "with a run that was stopped. It is `python -m lw_jax.launch --config CONFIG ...`."
    ),
    examples=(
        ("train configs/quickstart.yaml", "the quickstart, on a CPU"),
        ("train configs/facts.yaml --seed=43", "another seed"),
        (
            "train configs/telepathy/v05.yaml configs/overlays/facts.yaml",
            "the second file's keys override the first's",
        ),
    ),
    run=run,
    words=True,
)
