"""Every field of every config dataclass, and wrong values made from its type and bounds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from lw_jax.config import tree
from lw_jax.config.schema import Config
from lw_jax.utils import kinds

BASE: dict[str, Any] = {
    "name": "x",
    "sender": {"path": "s"},
    "receivers": {"r": {"path": "r"}},
    "data": {"facts": {}},
    "bridge": {
        "latent_dim": 8,
        "source": {"hidden_states": {"layers": [0]}},
        "compressor": {"perceiver": {"slots": 4}},
        "reader": {"soft_tokens": {}},
    },
    "objectives": {"answer_ce": {}},
    "stages": {"fit": {"train": {"steps": 2}}, "report": {"evaluate": {}}},
}
"""A config that is right, as plain values."""
LONG = 10**6
"""Longest text or list that is tried; bounds above it count as none."""


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        owner: the dataclass.
        path: keys above it; names that the user chooses are `fit`, `r` and `v`.
        name: its name.
        kind: its type, with bounds.
    """

    owner: Any
    path: tuple[str, ...]
    name: str
    kind: Any

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join((*self.path, self.name))

    def within(self, value: Any, base: dict[str, Any] = BASE) -> dict[str, Any]:
        """A config's plain values with this field, and what is required beside it."""
        raw = copy.deepcopy(base)
        here, at = raw, Config
        for key in self.path:
            at = tree.named(at) or kinds.fields(at)[key]
            here = here.setdefault(key, {})
            for name, below in {**required(at), **here}.items():
                here.setdefault(name, below)
        here[self.name] = value
        return raw


def every_field() -> Iterator[Field]:
    """Every field that a config can have; of a dataclass that is used twice, the first."""
    seen: set[Any] = set()
    names = {"stages": "fit", "receivers": "r", "sources": "v"}

    def walk(kind: Any, path: tuple[str, ...]) -> Iterator[Field]:
        kind = kinds.bare(kind)
        if kind in seen or not kind.__module__.startswith("lw_jax."):
            return  # the second: a part that another test has added
        seen.add(kind)
        for name, inner in kinds.fields(kind).items():
            yield Field(kind, path, name, inner)
            value = tree.named(inner)
            if value is not None and name in names:
                yield from walk(value, (*path, name, names[name]))
            elif kinds.fields(inner):
                yield from walk(inner, (*path, name))
            for part in get_args(kinds.bare(inner)):
                if value is None and kinds.fields(part):
                    yield from walk(part, (*path, name, "0"))

    yield from walk(Config, ())


def required(kind: Any) -> dict[str, Any]:
    """Plain values of the fields that a dataclass needs."""
    own = dataclasses.fields(kinds.bare(kind)) if kinds.fields(kind) else ()
    missing = [f.name for f in own if tree.default(f) is dataclasses.MISSING]
    return {name: right(kinds.fields(kind)[name]) for name in missing}


def right(kind: Any) -> Any:
    """A plain value of a type, inside its bounds."""
    if several := kinds.alternatives(kind):
        return right(several[0])
    inner, ends = kinds.bare(kind), kinds.bounds(kind)
    if inner in (int, float):
        return ends.least if ends.least is not None else ends.most
    if inner is str:
        return "x"
    if inner is bool:
        return False
    if get_origin(inner) is Literal:
        return get_args(inner)[0]
    if get_origin(inner) is tuple:
        return [right(get_args(inner)[0])] * (ends.shortest or 0)
    return {} if get_origin(inner) is dict else required(inner)


def wrong(kind: Any) -> Iterator[Any]:
    """Plain values that a type and its bounds exclude."""
    if several := kinds.alternatives(kind):  # a text or a list of texts
        if not kinds.optional(kind):
            yield None
        lists = [isinstance(right(one), list) for one in several]
        for one, is_list in zip(several, lists, strict=True):
            found = (v for v in wrong(one) if v is not None)
            yield from (v for v in found if isinstance(v, list) == is_list)
        return
    inner, ends = kinds.bare(kind), kinds.bounds(kind)
    if not kinds.optional(kind):
        yield None
    if inner in (int, float):
        yield from ("x", "", True, [], {}, float("nan"), float("inf"), -float("inf"), 10**30)
        yield from (-(10**30), 1e300)
        if ends.least is not None:
            yield ends.least - (1 if inner is int else 1e-6 * max(1, abs(ends.least)))
        if ends.most is not None:
            yield ends.most + (1 if inner is int else 1e-6 * max(1, abs(ends.most)))
        if ends.above is not None:
            yield ends.above
        if ends.below is not None:
            yield ends.below
        if inner is int:
            yield 0.5
    elif inner is str:
        yield from (3, 0.5, True, [], {}, "a\0b", "a\ud800b")
        if ends.shortest:
            yield ""
        if ends.longest is not None and ends.longest < LONG:
            yield "x" * (ends.longest + 1)
    elif inner is bool:
        yield from ("yes", 1, 0.0, [], {}, float("nan"))
    elif get_origin(inner) is Literal:
        yield from ("", "no such choice", 0.5, True, [], {}, float("nan"), 10**30)
    elif get_origin(inner) is tuple:
        yield from ("x", 3, True, {"a": 1}, float("nan"))
        if ends.shortest:
            yield []
        part = get_args(inner)[0]
        if ends.longest is not None:
            yield [right(part)] * (ends.longest + 1)
        if not kinds.fields(part):
            yield from ([value] for value in wrong(part))
    elif get_origin(inner) is dict:
        yield from ("x", 3, ["x"], float("nan"))
    else:
        yield from ("x", 3, True, ["x"], float("nan"))


def unbounded(kind: Any) -> str | None:
    """What a type lacks: bounds, or choices; None: nothing."""
    if several := kinds.alternatives(kind):
        return next((found for found in map(unbounded, several) if found), None)
    inner, ends = kinds.bare(kind), kinds.bounds(kind)
    if inner is bool or get_origin(inner) is Literal or kinds.fields(inner):
        return None
    if inner in (int, float):
        low, high = (ends.least, ends.above), (ends.most, ends.below)
        return "a bound" if low == (None, None) or high == (None, None) else None
    if inner is not str and get_origin(inner) not in (tuple, dict):
        return f"a type that can be checked (it is {inner})"
    if ends.longest is None:
        return "a greatest length"
    parts = [part for part in get_args(inner) if part is not ...]
    return next((found for found in map(unbounded, parts) if found), None)
