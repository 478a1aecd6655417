"""`lw-jax plan`: what memory a config needs on every device."""

from __future__ import annotations

from argparse import Namespace

from lw_jax import launch
from lw_jax.commands.base import Command, configured


def run(given: Namespace) -> int:
    """Prints the bytes of every stage."""
    return launch.main(["--plan", *configured("plan", given.words)])


COMMAND = Command(
    summary="say what memory a config needs on every device, before any weight is read",
    usage="CONFIG [CONFIG ...] [--devices=N --device_gb=GB | --topology=TPU] [--KEY=VALUE ...]",
    about=(
        "Weights, bridge, optimiser, activations and the cache of keys and values, for each stage; "
        "exit code 2 where they do not fit. --devices and --device_gb (10^9 bytes) are of devices "
        "that need not be here; --topology names a TPU that need not be here either, for which its "
        "own compiler plans."
    ),
    examples=(
        ("plan configs/facts.yaml", "on the devices that are here"),
        ("plan configs/facts.yaml --devices=8 --device_gb=80 --mesh.tensor=2", "on eight others"),
        ("plan configs/facts.yaml --topology=v5e:2x4 --mesh.fsdp=8", "on a TPU"),
    ),
    run=run,
    words=True,
)
