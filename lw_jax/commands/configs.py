"""`lw-jax configs`: what ships."""

from __future__ import annotations

import re
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from lw_jax.commands.base import Command, Parser
from lw_jax.errors import UserError
from lw_jax.utils import shipped

_NAMES, _WIDTH = 50, 100
"""Columns of a name and of what is said about it."""


def run(given: Namespace) -> int:
    """Prints a line for each config, bridge and model."""
    wanted = given.word
    lines = {name: about for home in _homes()[::-1] for name, about in _listed(home)}
    found = {name: about for name, about in lines.items() if wanted in name or wanted in about}
    for name, about in found.items():
        print(f"{name:<{_NAMES}} {about}")
    if not found:
        raise UserError(f"configs: nothing that ships has {wanted!r} in its name or its line")
    return 0


def _homes() -> list[Path]:
    """Directories that hold `configs` or `zoo`: this one, whose files are found first, and where
    what ships was installed."""
    every = [home for home in (Path(), shipped.home()) if home is not None]
    found = [home for home in every if any((home / part).is_dir() for part in shipped.PARTS)]
    if not found:
        raise UserError("configs: no directory configs here, and they are not installed")
    return found[:1] if len(found) > 1 and found[0].samefile(found[1]) else found


def _listed(home: Path) -> Iterator[tuple[str, str]]:
    for file in sorted((home / "configs").rglob("*.yaml")):
        yield str(file.relative_to(home)), _sentence(_comment(file))
    for card in sorted((home / "zoo").rglob("README.md")):
        yield str(card.parent.relative_to(home)), _sentence(_text(card))


def _comment(file: Path) -> str:
    """The comment that a config begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:count])


def _text(card: Path) -> str:
    """The first paragraph below a model card's title."""
    title = re.search(r"^# .*$", body := card.read_text(encoding="utf-8"), re.MULTILINE)
    text = body[title.end() if title else 0 :].strip()
    return " ".join(text.partition("\n\n")[0].split())


def _sentence(text: str) -> str:
    first = re.split(r"\.\s+(?=[A-Z])", text, maxsplit=1)[0].rstrip(" .:")
    return textwrap.shorten(first, _WIDTH, placeholder=" ...")


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="list those with this word alone"
    )


COMMAND = Command(
    summary="list the configs, bridges and models that ship, a line each",
    examples=(("configs", "all"), ("configs telepathy", "those with that word")),
    arguments=_arguments,
    run=run,
)
