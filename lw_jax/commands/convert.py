"""`lw-jax convert`: a model in GGUF, or with pickled weights, as a directory of safetensors."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lw_jax.commands.base import Command, Parser


def run(given: Namespace) -> int:
    """Writes the directory."""
    from lw_jax.runs.convert import convert
    from lw_jax.utils.shipped import found

    print(f"{convert(Path(found(given.model)), Path(given.out))}; written to {given.out}")
    return 0


def _arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="GGUF file, or directory")
    parser.add_argument("out", metavar="OUT", help="directory that is not there yet")


COMMAND = Command(
    summary="write a model in GGUF or with pickled weights as a directory of safetensors",
    about=(
        "GGUF is read as it is, too: this writes its weights as bfloat16, for other programs. Of\n"
        "pickled weights (pytorch_model.bin) only tensors are read; nothing in them is run."
    ),
    examples=(
        ("convert models/writer.gguf models/writer", "a GGUF file"),
        ("convert models/old models/new", "a directory with pytorch_model*.bin"),
    ),
    arguments=_arguments,
    run=run,
)
