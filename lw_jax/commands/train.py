"""`lw-jax train`: runs a config's stages in order."""

from __future__ import annotations

from argparse import Namespace

from lw_jax import launch
from lw_jax.commands.base import Command, configured


def run(given: Namespace) -> int:
    """Runs them, or goes on where they were stopped."""
    return launch.main(configured("train", given.words, more=", lw-jax configs"))


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
