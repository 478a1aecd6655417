"""`lw-jax init`: a config for two models and a data set."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from pathlib import Path

from lw_jax import launch
from lw_jax.commands._ends import writable
from lw_jax.commands.base import Command, Parser
from lw_jax.errors import UserError


def run(given: Namespace) -> int:
    """Writes it, and says what it will cost."""
    writable(given.out, "init")
    out = Path(given.out)
    if out.exists() and not given.force:
        raise UserError(f"init: {out} is there already; name another with -o, or give --force")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from lw_jax.config import yaml_files
    from lw_jax.runs.draft import draft
    from lw_jax.utils.files import write_text

    called = re.sub(r"[^A-Za-z0-9_-]+", "-", out.stem).strip("-") or "bridge"
    made = draft(given.sender, given.receiver, given.data, given.name or called)
    notes = "\n".join(f"# {line}" for line in made.notes)
    write_text(out, f"{notes}\n{yaml_files.dumps(made.raw)}")
    print("\n".join(made.notes))
    print(f"written to {out}; next: lw-jax doctor, plan and train {out}")
    return launch.main(["--plan", "--config", str(out)]) if given.plan else 0


def _arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("sender", metavar="SENDER", help="the model that reads: directory, GGUF file or hub name")
    add("receiver", metavar="RECEIVER", help="the model that answers")
    add("data", metavar="DATA", help="rows: file or directory; or facts, topics, squad, gsm8k, ...")
    add("-o", "--out", metavar="FILE", default="bridge.yaml", help="the config (%(default)s)")
    add("--name", help="of the run; left out: the file's")
    add("--plan", action="store_true", help="say what memory it needs as well, as `lw-jax plan`")
    add("--force", action="store_true", help="write over a file that is there")


COMMAND = Command(
    summary="write a config for two models and a data set, and say what it will cost",
    about=(
        "Taps, widths, lengths and curriculum are chosen by rule, from the models' config.json or\n"
        "GGUF header and from some of the rows; no weights are read. It is a start to change.\n"
        "What memory its stages need says `lw-jax plan`, or --plan at once."
    ),
    examples=(
        ("init zoo/tiny-llama zoo/tiny-qwen facts", "generated facts"),
        ("init models/reader.gguf models/writer.gguf qa.jsonl -o qa.yaml", "own models and rows"),
    ),
    arguments=_arguments,
    run=run,
)
