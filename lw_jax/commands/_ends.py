"""What commands at one end of a wire have in common: files or pipes, the key, models that moved."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lw_jax.commands.base import Parser
from lw_jax.errors import UserError, said
from lw_jax.utils.files import write_bytes

MOST_BYTES = 2**30


def read(place: str, command: str) -> bytes:
    """The bytes of a file, or of standard input, which is `-`.

    Raises:
        UserError: it cannot be read.
    """
    with _named(place, command):
        if place == "-":
            if sys.stdin.isatty():
                print(f"{command}: reading what you type; Ctrl-D ends it", file=sys.stderr)
            return sys.stdin.buffer.read(MOST_BYTES)
        with Path(place).open("rb") as file:
            return file.read(MOST_BYTES)


def read_text(place: str, command: str) -> str:
    """The text of a UTF-8 file, or of standard input, without a byte order mark.

    Raises:
        UserError: it cannot be read, or is no UTF-8.
    """
    try:
        return read(place, command).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{command}: {place}: byte {error.start} is no UTF-8") from error


def writable(place: str, command: str) -> None:
    """Checks before anything is computed that a file can be written.

    Args:
        place: the file; standard output, which is `-`, must be no terminal.
        command: whose output it is.

    Raises:
        UserError: it cannot.
    """
    if place == "-":
        if sys.stdout.isatty():
            raise UserError(f"{command}: bytes are nothing for a terminal; give -o FILE, or a pipe")
        return
    if not place:
        raise UserError(f"{command}: the name of the file to write is empty")
    path = Path(place)
    with _named(place, command):
        if path.is_dir():
            raise UserError(f"{command}: {place} is a directory; give a file")
        if not path.parent.is_dir():
            raise UserError(f"{command}: {place}: there is no directory {path.parent}")
        if not path.exists():  # what some places do not let one make shows in making it alone
            path.touch()
            path.unlink()


def new_directory(place: str, command: str, own: str) -> None:
    """Checks before anything is computed that a directory can be made, or may be written into.

    Args:
        place: the directory.
        command: whose output it is.
        own: a file that a directory which the command has written holds: into one that holds other
            files, and not this one, nothing is written.

    Raises:
        UserError: it cannot, or may not.
    """
    if not place:
        raise UserError(f"{command}: the name of the directory to write is empty")
    path = Path(place)
    with _named(place, command):
        if path.exists() and not path.is_dir():
            raise UserError(f"{command}: {place} is a file; give a directory")
        if path.is_dir() and any(path.iterdir()) and not (path / own).is_file():
            raise UserError(
                f"{command}: {place} holds other files; give a directory that is not there yet"
            )
        there = next(one for one in path.absolute().parents if one.exists())
        if not there.is_dir():
            raise UserError(f"{command}: {place}: {there} is a file")


@contextmanager
def _named(place: str, command: str) -> Iterator[None]:
    """While inside, something is done with a file or a directory.

    Raises:
        UserError: instead of what the file system says, or of a name that cannot be one.
    """
    try:
        yield
    except UserError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or said(error)).lower()
        raise UserError(f"{command}: {place}: {reason}") from error


def write(place: str, data: bytes) -> None:
    """Writes a file, whole or not at all, or to standard output, which is `-`."""
    if place == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    write_bytes(Path(place), data)


def add_models(parser: Parser) -> None:
    """The options that say where receivers are, and which key both ends share."""
    parser.add_argument(
        "--model",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="a receiver, if it has moved",
    )


def add_key(parser: Parser) -> None:
    """The option that says which key both ends share."""
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="key that both ends share: others are refused",
    )


def add_gate(parser: Parser) -> None:
    """The option that names a gate for messages."""
    parser.add_argument(
        "--gate",
        metavar="FILE",
        help="gate that `probe hostile` wrote: unlike messages are refused",
    )


def key_of(given: Namespace) -> bytes | None:
    """The key in the file that was named; None: none was."""
    if given.key_file is None:
        return None
    return read(given.key_file, "--key-file").strip()


def token_of(given: Namespace) -> str | None:
    """The bearer token: in the file that was named, else in `LW_JAX_TOKEN`; None: there is none.

    Raises:
        UserError: it is empty, or no ASCII text.
    """
    found: str | None = os.environ.get("LW_JAX_TOKEN")
    if given.token_file is not None:
        found = read(given.token_file, "--token-file").decode("utf-8", "replace").strip()
    if found is not None and not (found and found.isascii() and found.isprintable()):
        raise UserError("the bearer token: expected some printable ASCII characters")
    return found


def models_of(given: Namespace) -> dict[str, str]:
    """Where the receivers are that have moved.

    Raises:
        UserError: one is not NAME=PATH.
    """
    found = {}
    for one in given.model:
        name, equals, place = one.partition("=")
        if not (name and equals and place):
            raise UserError(f"--model {one}: expected NAME=PATH")
        found[name] = place
    return found
