"""What commands with a config class of their own have in common: their flags `--KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from lw_jax.errors import UserError
from lw_jax.utils import kinds

Kind = TypeVar("Kind")


def read(
    command: str, flags: Sequence[str], kind: type[Kind], own: Sequence[str]
) -> tuple[Kind, dict[str, str]]:
    """The config in a command's flags, and the options that are no field of it.

    Args:
        command: its name, for messages.
        flags: the words.
        kind: the config's class.
        own: names of the other options.

    Raises:
        UserError: a word is no flag, a key is unknown, or a value is wrong.
    """
    from lw_jax.config import parse

    options: dict[str, str] = {}
    raw: dict[str, Any] = {}
    for flag in flags:
        key, equals, text = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not equals:
            raise UserError(f"{command}: {flag}: expected --KEY=VALUE")
        if key in own:
            options[key] = text
        elif key.partition(".")[0] not in kinds.fields(kind):
            known = ", ".join([*kinds.fields(kind), *own])
            raise UserError(f"{command}: --{key}: unknown; there are {known}")
        else:
            parse.put(kind, raw, key, text)
    return parse.build(kind, raw), options
