"""What a subcommand is, and how they are found."""

from __future__ import annotations

import argparse
import difflib
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lw_jax.errors import UserError
from lw_jax.utils import shipped

PROGRAM = "lw-jax"
_HOME = "lw_jax.commands"
_NO_VALUE = ("--doctor", "--print_config")


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: what it does, in a line.
        run: does it, and gives the exit code; bad input raises UserError.
        examples: command lines without the program's name, each with what it does.
        arguments: adds its arguments to a parser; None: there are none.
        words: whether `run` gets the words as they are, as `words`, because they hold flags
            `--KEY=VALUE` of a config; `usage` and `about` then say what they are.
        usage: its arguments in the help's first line; "": as argparse writes them.
        about: more about it, for its help.
    """

    summary: str
    run: Callable[[argparse.Namespace], int]
    examples: tuple[tuple[str, str], ...]
    arguments: Callable[[Parser], None] | None = None
    words: bool = False
    usage: str = ""
    about: str = ""


def names() -> list[str]:
    """The subcommands, in alphabetical order."""
    home = importlib.import_module(_HOME)
    found = {info.name for info in pkgutil.iter_modules(home.__path__)}
    return sorted(name for name in found - {"base"} if not name.startswith("_"))


def command(name: str) -> Command:
    """The subcommand of a name.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise UserError(f"{PROGRAM} {name}: no such command; {guess}")
    found = importlib.import_module(f"{_HOME}.{name}").COMMAND
    assert isinstance(found, Command), name
    return found


def call(name: str, words: Sequence[str]) -> int:
    """Runs a subcommand.

    Args:
        name: its name.
        words: what follows it on the command line.

    Returns:
        The exit code.

    Raises:
        UserError: bad input.
    """
    one = command(name)
    parser = parser_of(name, one)
    if not one.words:
        return one.run(parser.parse_args(words))
    if {"-h", "--help"} & set(words):
        parser.print_help()
        return 0
    return one.run(argparse.Namespace(words=list(words)))


def parser_of(name: str, one: Command) -> Parser:
    """The parser of a subcommand, which also prints its help."""
    program = f"{PROGRAM} {name}"
    shown = [f"  {PROGRAM} {line}\n      {what}" for line, what in one.examples]
    parser = Parser(
        prog=program,
        usage=f"{program} {one.usage}" if one.usage else None,
        description="\n\n".join(filter(None, (one.summary, one.about))),
        epilog="\n".join(["examples:", *shown]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if one.arguments is not None:
        one.arguments(parser)
    return parser


def overview() -> str:
    """All subcommands, a line each."""
    width = max(map(len, names()))
    lines = [f"  {name:<{width}}  {command(name).summary}" for name in names()]
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND ...",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help    explains one, with examples",
            f"{PROGRAM} --help KEY        a key of a config, and those below it; all: every key",
            f"{PROGRAM} --version",
            f"{PROGRAM} --config FILE ... as `python -m lw_jax.launch --config FILE ...`",
            "",
        )
    )


def configured(name: str, words: Sequence[str], more: str = "") -> list[str]:
    """`config_words` of a subcommand, which needs a config.

    Raises:
        UserError: there are no words.
    """
    if not words:
        raise UserError(f"{name}: give a config file (see {PROGRAM} {name} --help{more})")
    found = config_words(words)
    for key, word in itertools.pairwise(found):
        if key == "--config" and "=" in word and not Path(shipped.found(word)).exists():
            raise UserError(f"{name}: {word}: no such file; a key is set by --{word}")
    return found


def config_words(words: Sequence[str]) -> list[str]:
    """Words in which a config file stands alone, as `python -m lw_jax.launch` takes them.

    Args:
        words: files, and flags `--KEY=VALUE` or `--KEY VALUE`.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            found += ["--config", word]
            continue
        found.append(word)
        valued = "=" not in word and word not in _NO_VALUE
        if valued and rest and not rest[0].startswith("--"):
            found.append(rest.pop(0))
    return found
