"""Names of the bridge's parts: `readers/<receiver>/<reader>` in every tree that a person sees.

Linen joins the keys of nested dictionaries of modules with underscores, and derives the random keys
of initialisation and dropout from the result. Inside the module those names stay as they were, so
that a seed gives the same weights; outside, trees are nested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lw_jax.errors import UserError
from lw_jax.types import PyTree

GROUPS = {"readers": 2, "sources": 1}
"""Groups of parts, with the number of name levels below: receiver and reader, or view."""


def components(params: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], PyTree]]:
    """Every part of a bridge's tree with its path: ("compressor",), ("readers", "qwen", "lora")."""

    def below(path: tuple[str, ...], tree: PyTree, levels: int) -> Iterator[Any]:
        if not levels:
            yield path, tree
            return
        for name, inner in tree.items():
            yield from below((*path, name), inner, levels - 1)

    for name, tree in params.items():
        yield from below((name,), tree, GROUPS.get(name, 0))


def from_paths(parts: Mapping[tuple[str, ...], PyTree]) -> dict[str, Any]:
    """The tree with these `components`."""
    found: dict[str, Any] = {}
    for path, tree in parts.items():
        at = found
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = tree
    return found


def chosen_parts(params: Mapping[str, Any], names: Iterable[str]) -> dict[tuple[str, ...], PyTree]:
    """The components with these names, or below them (`readers/qwen`).

    Raises:
        UserError: no component has the name.
    """
    parts = dict(components(params))
    found: dict[tuple[str, ...], PyTree] = {}
    for name in names:
        below = {
            p: x for p, x in parts.items() if f"{'/'.join(p)}/".startswith(f"{name.rstrip('/')}/")
        }
        if not below:
            known = ", ".join("/".join(path) for path in parts)
            raise UserError(f"init_only: no component {name!r} here; there are {known}")
        found |= below
    return found


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """A bridge's tree with linen's names: `readers_qwen_lora`."""
    return {"_".join(path): tree for path, tree in components(params)}


def nested(tree: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Turns a tree with linen's names into one with readable paths.

    Args:
        tree: the tree.
        paths: paths of all parts.
    """
    known = {"_".join(path): path for path in paths}
    return from_paths({known.get(name, (name,)): inner for name, inner in tree.items()})


def readable(name: str, receivers: Iterable[str]) -> str:
    """The readable path of a component, or of a pattern on paths, that may have linen's name."""
    for receiver in sorted(receivers, key=len, reverse=True):
        name = re.sub(rf"readers_{re.escape(receiver)}(?:_|\b)", f"readers/{receiver}/", name)
    return name


def flat_name(path: str) -> str:
    """Linen's name for a readable path: `readers/qwen/lora/q_up` -> `readers_qwen_lora/q_up`."""
    group, *rest = path.split("/")
    levels = GROUPS.get(group, 0)
    return "/".join(["_".join([group, *rest[:levels]]), *rest[levels:]])
