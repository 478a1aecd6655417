"""`lw-jax sweep`: a run for each of several values."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax import launch
from lw_jax.commands.base import Command, config_words
from lw_jax.config import yaml_files
from lw_jax.config.command import read_command
from lw_jax.errors import UserError


def run(given: Namespace) -> int:
    """Runs them, and prints one table."""
    found: list[str] = []
    for word in config_words(given.words):
        if found[-1:] == ["--config"] and "=" in word and not Path(word).is_file():
            found[-1] = "--sweep"
        found.append(word)
    if "--config" not in {word.partition("=")[0] for word in found}:
        raise UserError("sweep: give a config file (see lw-jax sweep --help)")
    command = read_command(found)
    files = (command.target, *command.over)
    if not command.sweep and not any(yaml_files.load(one).get("sweep") for one in files):
        raise UserError(
            "sweep: nothing varies; give KEY=A,B, such as seed=42,43, or a file with it"
        )
    return launch.main(found)


COMMAND = Command(
    summary="run a config for each of several values, and print one table",
    usage="CONFIG [CONFIG ...] KEY=A,B [KEY=C,D ...] [--KEY=VALUE ...]",
    about="Several keys make a grid. A config's own `sweep: {KEY: [A, B]}` needs none here.",
    examples=(
        ("sweep configs/facts.yaml seed=42,43,44", "three seeds"),
        (
            "sweep configs/facts.yaml stages.fit.train.optimiser.lr=3e-3,1e-2 seed=42,43",
            "a grid of four runs",
        ),
    ),
    run=run,
    words=True,
)
