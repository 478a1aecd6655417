"""The config dataclasses as a tree of keys: what is under a key, in words and in types."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from lw_jax.utils.kinds import alternatives, bare, fields, optional


def named(kind: Any) -> Any | None:
    """The type of the values if the keys are names that the user chooses (stages, receivers)."""
    kind = bare(kind)
    return get_args(kind)[1] if get_origin(kind) is dict else None


def default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; `dataclasses.MISSING` if it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def is_choice(kind: Any) -> bool:
    """Whether the type is a dataclass of optional parts (variants, kinds of stage)."""
    inner = fields(kind).values()
    return all(optional(k) and dataclasses.is_dataclass(bare(k)) for k in inner) and bool(inner)


def at(kind: Any, path: tuple[str | int, ...]) -> Any:
    """The type at a path of keys and list indices."""
    for key in path:
        if alternatives(kind):
            return kind
        if isinstance(key, int):
            inner = [a for a in get_args(bare(kind)) if a is not ...]
            kind = inner[min(key, len(inner) - 1)]
        else:
            kind = named(kind) or fields(kind)[key]
    return kind


def keys(kind: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys of a path up to a union, whose alternatives pydantic names after it."""
    for place in range(len(path)):
        if alternatives(at(kind, path[:place])):
            return path[:place]
    return path


def paths(kind: Any, raw: Any, before: str = "") -> Iterator[str]:
    """Every dotted key that a flag may set, given what the file sets."""
    value = named(kind)
    children = dict.fromkeys(raw or {}, value) if value is not None else fields(kind)
    for name, child in children.items():
        key = f"{before}{name}"
        yield key
        below = raw.get(name) if isinstance(raw, dict) else None
        yield from paths(child, below, key + ".")


def docs(kind: Any) -> dict[str, str]:
    """One line per field, from the `Args:` sections of the dataclass's docstring and its bases'."""
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(kind)):
        found.update(_args(one.__doc__ or ""))
    return found


def _args(docstring: str) -> dict[str, str]:
    text = inspect.cleandoc(docstring).partition("Args:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            break
        entry = re.match(r" {4}(\w+(?:, \w+)*): +(.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2].strip()))
        else:
            for name in names:
                found[name] += " " + line.strip()
    return found
