"""Checks that several config dataclasses share. Messages begin with the field's name."""

from __future__ import annotations

import dataclasses
from typing import Any

from lw_jax.errors import UserError
from lw_jax.utils.registry import chosen


def exactly_one(options: Any, field: str = "") -> None:
    """Raises UserError unless exactly one variant of a choice is set.

    Args:
        options: the choice.
        field: name of the field that holds it, for the message.
    """
    names = list(chosen(options))
    if len(names) != 1:
        known = ", ".join(f.name for f in dataclasses.fields(options))
        got = "none is set" if not names else f"{' and '.join(names)} are set"
        raise UserError(f"{field}{': ' if field else ''}{got}; set exactly one of {known}")


def distinct(config: Any, *fields: str) -> None:
    """Raises UserError if an entry of one of the fields, which are lists, is there twice."""
    for name in fields:
        entries = list(getattr(config, name))
        twice = [x for i, x in enumerate(entries) if x in entries[:i]]
        if twice:
            raise UserError(f"{name}: {twice[0]!r} is given twice")


def at_least(config: Any, least: float, *fields: str) -> None:
    """Raises UserError if one of the fields is below `least` (null passes)."""
    for name in fields:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{name}: expected at least {least}; got {value}")
