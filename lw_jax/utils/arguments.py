"""Checks of what is handed to the Python API: one line each, which names the argument."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from lw_jax.errors import UserError

T = TypeVar("T")
SHORTEST_KEY = 16


def text(where: str, value: Any, blank: bool = False) -> str:
    """A text.

    Args:
        where: names the argument.
        value: what was given.
        blank: whether it may be empty, or white space.

    Raises:
        UserError: it is no text, blank, or has a character that no tokenizer should be given.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text; got {shown(value)}")
    if not blank and not value.strip():
        raise UserError(f"{where}: there is nothing in it; give some text")
    if "\0" in value:
        raise UserError(f"{where}: character {value.index(chr(0))} is a NUL; leave it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start} is half of a surrogate pair "
            f"({value[error.start]!r}), which is no text; decode the text's bytes as UTF-8"
        ) from None
    return str(value)


def packet(where: str, value: Any) -> bytes:
    """The bytes of a packet.

    Raises:
        UserError: they are no bytes.
    """
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UserError(f"{where}: expected the bytes that encode gave; got {shown(value)}")
    return bytes(value)


def several(where: str, value: Any, one: Callable[[str, Any], T]) -> tuple[list[T], bool]:
    """One value, or a list of them, as a list; and whether it was one.

    Args:
        where: names the argument.
        value: a value, a list or a tuple.
        one: checks one value.
    """
    if isinstance(value, list | tuple):
        return [one(f"{where} {i}", v) for i, v in enumerate(value)], True
    return [one(where, value)], False


def made(where: str, values: Any, kind: type, by: str) -> None:
    """Checks that values are such as a method makes.

    Args:
        where: names the method that they are for.
        values: a list or a tuple of them.
        kind: what each is.
        by: the method that makes them.

    Raises:
        UserError: they are no list, or one is something else.
    """
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: expected a list of what {by} gives; got {shown(values)}")
    wrong = next((i for i, one in enumerate(values) if not isinstance(one, kind)), None)
    if wrong is not None:
        raise UserError(f"{where}: {wrong}: expected what {by} gives; got {shown(values[wrong])}")


def number(where: str, value: Any, low: float, high: float) -> float:
    """A number from `low` to `high`.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(
            f"{where}: expected a number from {_plain(low)} to {_plain(high)}; got {shown(value)}"
        )
    try:
        found = float(value)
    except OverflowError:  # of a whole number
        found = math.inf
    if not low <= found <= high:  # nor NaN
        raise UserError(f"{where}: expected {_plain(low)} to {_plain(high)}; got {found:g}")
    return found


def _plain(value: float) -> str:
    """A number as people write it."""
    return f"{value:.0f}" if abs(value) < 1e12 and value == round(value) else f"{value:g}"


def one_of(where: str, value: Any, known: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        UserError: it is none of them.
    """
    if not isinstance(value, str) or value not in known:
        got = repr(value) if isinstance(value, str) else shown(value)
        raise UserError(f"{where}: expected one of {', '.join(known)}; got {got}")
    return value


def path(where: str, value: Any) -> Path:
    """A path.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UserError(f"{where}: expected a path; got {shown(value)}")
    return Path(text(where, os.fspath(value)))


def key(where: str, value: Any) -> bytes | None:
    """A key that two ends share; None: there is none.

    Raises:
        UserError: it is no key, or too short to be one.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = text(where, value).encode()
    if not isinstance(value, bytes | bytearray):
        raise UserError(f"{where}: expected bytes or text; got {shown(value)}")
    if len(value) < SHORTEST_KEY:
        raise UserError(f"{where}: {len(value)} bytes; give {SHORTEST_KEY} random bytes or more")
    return bytes(value)


def shown(value: Any) -> str:
    """What a value is, in a word or two."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
