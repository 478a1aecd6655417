"""The config dataclasses as a tree of keys: what is under a key, in words and in types."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin


def bare(kind: Any) -> Any:
    """The type without `| None`."""
    if get_origin(kind) in (Union, types.UnionType):
        others = [a for a in get_args(kind) if a is not type(None)]
        return others[0] if len(others) == 1 else kind
    return kind


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, null aside, if there are several; else ()."""
    inner = bare(kind)
    several = get_origin(inner) in (Union, types.UnionType)
    return tuple(a for a in get_args(inner) if a is not type(None)) if several else ()


def optional(kind: Any) -> bool:
    """Whether null is a value of the type."""
    return kind is type(None) or type(None) in get_args(kind)


def fields(kind: Any) -> dict[str, Any]:
    """Types of a config dataclass's fields, by name, in order; {} for any other type."""
    kind = bare(kind)
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


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


def describe(kind: Any) -> str:
    """What a value of the type looks like, in words."""
    text = _describe(bare(kind))
    return f"{text}, or null" if optional(kind) else text


def _describe(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind in words:
        return words[kind]
    if several := alternatives(kind):
        return " or ".join(describe(a) for a in several)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(kind))
    if get_origin(kind) in (tuple, list):
        inner = get_args(kind)
        if len(inner) == 2 and inner[1] is ...:
            return f"a list, each {describe(inner[0])}"
        return "a list of " + ", ".join(describe(k) for k in inner)
    if get_origin(kind) is dict:
        return "a mapping of names to their settings"
    if dataclasses.is_dataclass(kind):
        return "a mapping with keys of " + ", ".join(fields(kind))
    return str(kind)


def short(kind: Any) -> str:
    """The type in one or two words, for `--help`."""
    inner = bare(kind)
    words = {int: "int", float: "number", str: "text", bool: "true|false"}
    text = words.get(inner, "|".join(short(a) for a in alternatives(inner)))
    if get_origin(inner) is Literal:
        text = "|".join(str(a) for a in get_args(inner))
    elif get_origin(inner) in (tuple, list):
        text = f"[{short(get_args(inner)[0])}, ...]"
    elif dataclasses.is_dataclass(inner):
        text = "{" + ", ".join(fields(inner)) + "}"
    return (text or str(inner)) + ("|null" if optional(kind) else "")


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
