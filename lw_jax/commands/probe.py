"""`lw-jax probe`: what a latent reveals, can be made to do, and does to its receiver."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from typing import Any

from lw_jax.commands import _flags
from lw_jax.commands.base import Command
from lw_jax.errors import UserError
from lw_jax.probes.config import HostileConfig, LeakConfig, OracleConfig, SkillConfig
from lw_jax.utils import kinds

KINDS: dict[str, Any] = {
    "leak": LeakConfig,
    "hostile": HostileConfig,
    "skill": SkillConfig,
    "oracle": OracleConfig,
}
OWN = ("out", "receiver")
"""Options that every kind has."""


def run(given: Namespace) -> int:
    """Probes a bridge."""
    words = list(given.words)
    if len(words) < 2 or words[0] not in KINDS or words[1].startswith("-"):
        raise UserError(
            f"probe: give one of {', '.join(KINDS)} and then a run directory "
            "(see lw-jax probe --help)"
        )
    kind, place, *flags = words
    config, own = _flags.read(f"probe {kind}", flags, KINDS[kind], OWN)
    if not own.get("out", "-"):
        raise UserError(f"probe {kind}: --out: the name of the directory to write is empty")

    from rich.console import Console

    from lw_jax.launch import WIDTH
    from lw_jax.probes.base import open_probed

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    probed = open_probed(place, own.get("out"), own.get("receiver"), console)
    print(importlib.import_module(f"lw_jax.probes.{kind}").run(probed, config))
    return 0


COMMAND = Command(
    summary="what a message reveals, can be made to do, and does to its receiver",
    usage="leak|hostile|skill|oracle RUN_DIR [--out=DIR] [--receiver=NAME] [--KEY=VALUE ...]",
    about=(
        "leak: an inverter is trained to write the text of a message, alone and with the\n"
        "receiver. hostile: messages are optimised towards answers that their texts do not have;\n"
        "a gate that looks for such messages is fitted, and written as gate.npz.\n"
        "skill: perplexity and answers of the receiver with a message present that it does not\n"
        "need. oracle: soft tokens of each passage are optimised for the receiver, beside text\n"
        "and bridge: what so few of them can hold, and what the encoder leaves of it.\n"
        "All write probe_KIND.json into --out, by default probes in the run's directory.\n\n"
        + "\n".join(
            f"{kind}: " + ", ".join(f"--{name}" for name in kinds.fields(config))
            for kind, config in KINDS.items()
        )
    ),
    examples=(
        ("probe leak zoo/bridges/facts --rows=1000 --steps=500", "smaller than by default"),
        ("probe hostile runs/mine --codecs=[int8] --limits=[1,0]", "one codec, two limits"),
        ("probe skill runs/mine --texts=plain.txt", "perplexity of texts of your own"),
        ("probe oracle runs/mine --ratios=[4,8] --text=runs/tuned", "beside a tuned receiver"),
    ),
    run=run,
    words=True,
)
