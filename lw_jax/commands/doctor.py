"""`lw-jax doctor`: checks a config before it costs anything."""

from __future__ import annotations

from argparse import Namespace

from lw_jax import launch
from lw_jax.commands.base import Command, configured


def run(given: Namespace) -> int:
    """Prints all findings."""
    return launch.main(["--doctor", *configured("doctor", given.words)])


COMMAND = Command(
    summary="check a config before it costs anything: models, rows, shapes, memory",
    usage="CONFIG [CONFIG ...] [--KEY=VALUE ...]",
    about="Prints what is right, what to look at and what is wrong; exit code 2 if something is.",
    examples=(
        ("doctor configs/facts.yaml", "before `lw-jax train configs/facts.yaml`"),
        ("doctor configs/facts.yaml --mesh.tensor=2", "with a key changed"),
    ),
    run=run,
    words=True,
)
