"""Types of config fields: what is in them, their bounds, and both in words."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at

from lw_jax.errors import UserError, one_line

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_SHORT = {int: "int", float: "number", str: "text", bool: "true|false"}
_LONGEST = 60
"""Characters of a wrong value that a message shows."""


@cache
def bare(kind: Any) -> Any:
    """The type without `| None` and without bounds."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType):
            others = [a for a in get_args(kind) if a is not type(None)]
            if len(others) != 1:
                return kind
            kind = others[0]
        else:
            return kind


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, null aside, if there are several; else ()."""
    inner = bare(kind)
    several = get_origin(inner) in (Union, types.UnionType)
    return tuple(a for a in get_args(inner) if a is not type(None)) if several else ()


def optional(kind: Any) -> bool:
    """Whether null is a value of the type."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind is type(None) or type(None) in get_args(kind)


def wants_whole(kind: Any) -> bool:
    """Whether a number of the type is whole."""
    inner = bare(kind)
    return inner is int or (
        get_origin(inner) is Literal and all(type(a) is int for a in get_args(inner))
    )


def fields(kind: Any) -> dict[str, Any]:
    """Types of a config dataclass's fields with bounds, in order; {} for any other type.

    Raises:
        UserError: a type names something that its module does not have.
    """
    kind = bare(kind)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {}
    made = kind.__dataclass_fields__
    if kind not in _SEEN or _SEEN[kind][0] is not made:  # a choice may get further variants
        try:
            hints = typing.get_type_hints(kind, include_extras=True)
        except (NameError, TypeError) as error:
            home = f"{kind.__module__}.{kind.__qualname__}"
            raise UserError(f"{home}: the type of a field cannot be read: {error}") from error
        _SEEN[kind] = made, {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    return dict(_SEEN[kind][1])


_SEEN: dict[type, tuple[Any, dict[str, Any]]] = {}
"""What `fields` found, by class and the fields that it had."""


@dataclass(frozen=True)
class Bounds:
    """What a type says of its values.

    Attributes:
        least, most: values at the ends, which are allowed; None: no such end.
        above, below: values at the ends, which are not allowed; None: no such end.
        shortest, longest: length of a text or list; None: no such end.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    shortest: int | None = None
    longest: int | None = None

    def wrong(self, value: Any) -> str | None:
        """What is wrong with a number, text or list; None: nothing."""
        if isinstance(value, Real):
            return self._wrong_number(value)
        many = f"got {len(value):,}"
        unit = "characters" if isinstance(value, str) else "entries"
        if self.shortest is not None and len(value) < self.shortest:
            if self.shortest == 1:
                return (
                    f"expected {'some text' if isinstance(value, str) else 'one or more'}; got none"
                )
            return f"expected at least {self.shortest} {unit}; {many}"
        if self.longest is not None and len(value) > self.longest:
            return f"expected at most {self.longest:,} {unit}; {many}"
        return None

    def _wrong_number(self, value: Any) -> str | None:
        got = f"got {shown(value)}"
        if self.least is not None and value < self.least:
            return f"expected at least {number(self.least)}; {got}"
        if self.above is not None and value <= self.above:
            return f"expected above {number(self.above)}; {got}"
        if self.most is not None and value > self.most:
            return f"expected at most {number(self.most)}; {got}"
        if self.below is not None and value >= self.below:
            return f"expected below {number(self.below)}; {got}"
        return None

    def __str__(self) -> str:
        """In words for `--help`, such as `1 to 64`; empty if there are none for numbers."""
        low, high = self.least, self.most
        parts = []
        if low is not None and high is not None:
            parts.append(f"{number(low)} to {number(high)}")
        elif low is not None:
            parts.append(f"{number(low)} or more")
        elif high is not None:
            parts.append(f"at most {number(high)}")
        if self.above is not None:
            parts.insert(0, f"above {number(self.above)}")
        if self.below is not None:
            parts.append(f"below {number(self.below)}")
        return ", ".join(parts)


@cache
def bounds(kind: Any) -> Bounds:
    """The bounds that are written on a type."""
    found: dict[str, Any] = {}
    while get_origin(kind) is Annotated or get_origin(kind) in (Union, types.UnionType):
        if get_origin(kind) is Annotated:
            kind, *notes = get_args(kind)
            for note in notes:
                found.update(_read(note))
        else:
            inner = [a for a in get_args(kind) if a is not type(None)]
            if len(inner) != 1:
                break
            (kind,) = inner
    return Bounds(**found)


def _read(note: Any) -> dict[str, Any]:
    """What one note on a type says; those that are no bounds say nothing."""
    notes = note if isinstance(note, at.GroupedMetadata) else [note]
    found: dict[str, Any] = {}
    for one in notes:
        for kind, name, attribute in (
            (at.Ge, "least", "ge"),
            (at.Le, "most", "le"),
            (at.Gt, "above", "gt"),
            (at.Lt, "below", "lt"),
            (at.MinLen, "shortest", "min_length"),
            (at.MaxLen, "longest", "max_length"),
        ):
            if isinstance(one, kind):
                found[name] = getattr(one, attribute)
    return found


def wrong(kind: Any, value: Any) -> tuple[tuple[str | int, ...], str] | None:
    """What is wrong with a value of a field.

    Dataclasses are not looked into: they have checked themselves.

    Args:
        kind: the field's type with its bounds. Of a type that is not known here, floats must be
            finite and nothing else is asked.
        value: the value; a tuple may be a list.

    Returns:
        The path of keys and indices below the field, and the complaint; None: nothing is wrong.
    """
    if value is None:
        return None if optional(kind) or kind is Any else ((), f"{_expected(kind)}; got null")
    inner = bare(kind)
    if several := alternatives(kind):
        lists = isinstance(value, tuple | list)
        for one in several:
            if (get_origin(bare(one)) in (tuple, list)) == lists:
                return wrong(one, value)
        return (), f"{_expected(kind)}; got {shown(value)}"
    if inner in _WORDS or get_origin(inner) is Literal:
        found = _wrong_scalar(inner, value) or bounds(kind).wrong(value)
        if found is None:
            return None
        return (), found if found.startswith("expected") else f"{_expected(kind)}; got {found}"
    origin, parts = get_origin(inner), get_args(inner)
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return (), f"{_expected(kind)}; got {shown(value)}"
        if found := bounds(kind).wrong(value):
            return (), found
        open_ended = origin is list or parts[1:] == (...,)
        if not open_ended and len(value) != len(parts):
            return (), f"{_expected(kind)}; got {shown(value)}"
        kinds = (parts[0],) * len(value) if open_ended else parts
        return _first_wrong(enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            return (), f"{_expected(kind)}; got {shown(value)}"
        if found := bounds(kind).wrong(value):
            return (), found
        for key in value:
            if named := wrong(parts[0], key):
                return (), f"{shown(key)}: {named[1]}"
        return _first_wrong((key, (parts[1], below)) for key, below in value.items())
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
        return None if isinstance(value, inner) else ((), f"{_expected(kind)}; got {shown(value)}")
    if isinstance(value, tuple | list | dict):
        parts_of = value.items() if isinstance(value, dict) else enumerate(value)
        return _first_wrong((key, (Any, below)) for key, below in parts_of)
    if isinstance(value, float) and not math.isfinite(value):
        return (), f"expected a finite number; got {shown(value)}"
    return None


def _first_wrong(
    parts: Iterable[tuple[str | int, tuple[Any, Any]]],
) -> tuple[tuple[str | int, ...], str] | None:
    for key, (kind, value) in parts:
        if found := wrong(kind, value):
            return (key, *found[0]), found[1]
    return None


def _wrong_scalar(inner: Any, value: Any) -> str | None:
    """The value as it is shown if it is of another type, or a whole complaint; None: it fits."""
    if get_origin(inner) is Literal:
        same = any(type(a) is type(value) and a == value for a in get_args(inner))
        return None if same else shown(value)
    if inner is str:
        if not isinstance(value, str):
            return shown(value)
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            return "expected text of Unicode characters other than NUL; got other ones"
        return None
    if inner is bool or isinstance(value, bool):
        return None if inner is bool and isinstance(value, bool) else shown(value)
    if not isinstance(value, Integral if inner is int else Real):
        return shown(value)
    if not _finite(value):
        return f"expected a finite number; got {shown(value)}"
    return None


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, int) or math.isfinite(value)
    except OverflowError:
        return False


def _expected(kind: Any) -> str:
    return f"expected {describe(kind)}"


def number(value: float) -> str:
    """A bound as people write it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def shown(value: Any) -> str:
    """A wrong value as a message shows it: one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, dict):
        text = f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    elif isinstance(value, tuple | list):
        text = "[" + ", ".join(shown(v) for v in value[:_LONGEST]) + "]"
    else:
        text = str(value)
    text = one_line(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


NAMED = 12
"""Keys of a mapping that an error names; a few are a hint, all of a stage a wall of text."""


def describe(kind: Any) -> str:
    """What a value of the type looks like, in words."""
    text = _describe(kind)
    return f"{text}, or null" if optional(kind) else text


def _describe(kind: Any) -> str:
    inner = bare(kind)
    if several := alternatives(kind):
        return " or ".join(_describe(one) for one in several)
    if inner in _WORDS:
        return _WORDS[inner]
    if get_origin(inner) is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(inner))
    if get_origin(inner) in (tuple, list):
        parts = get_args(inner)
        if len(parts) == 1 or parts[1] is ...:
            return f"a list, each {describe(parts[0])}"
        return "a list of " + ", ".join(describe(k) for k in parts)
    if get_origin(inner) is dict:
        return "a mapping of names to their settings"
    if dataclasses.is_dataclass(inner):
        names = list(fields(inner))
        more = len(names) - NAMED
        shown = [*names[:NAMED], f"{more} more (--help)"] if more > 1 else names
        return "a mapping with keys of " + ", ".join(shown)
    return str(inner)


def short(kind: Any) -> str:
    """The type in one or two words, for `--help`."""
    inner = bare(kind)
    text = _SHORT.get(inner, "|".join(short(one) for one in alternatives(kind)))
    if get_origin(inner) is Literal:
        text = "|".join(str(a) for a in get_args(inner))
    elif get_origin(inner) in (tuple, list):
        text = f"[{short(get_args(inner)[0])}, ...]"
    elif dataclasses.is_dataclass(inner):
        text = "{" + ", ".join(fields(inner)) + "}"
    return (text or str(inner)) + ("|null" if optional(kind) else "")


def between(kind: Any) -> str:
    """The bounds of a number, or of a list's entries, for `--help`; empty if there are none."""
    inner = bare(kind)
    if get_origin(inner) in (tuple, list):
        return between(get_args(inner)[0])
    return str(bounds(kind))


def first_wrong(config: Any) -> str | None:
    """What is wrong with the first wrong field of a dataclass: `name: complaint`; None: nothing."""
    for name, kind in fields(type(config)).items():
        if found := wrong(kind, getattr(config, name)):
            return f"{'.'.join(map(str, (name, *found[0])))}: {found[1]}"
    return None
