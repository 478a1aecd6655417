"""Config keys that were renamed: old files, runs and exported bridges can still be read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, get_origin

from lw_jax.config import tree
from lw_jax.utils import kinds

RENAMED: dict[str, dict[str, str]] = {
    "LayoutConfig": {"beside_text": "with_text"},
    "EvaluateConfig": {"beside": "rivals"},
    "MeshConfig": {"model": "tensor"},
}
"""New names, by config dataclass and old name."""


def new_name(kind: Any, name: str) -> str:
    """The present name of a key of a config dataclass."""
    return RENAMED.get(getattr(kinds.bare(kind), "__name__", ""), {}).get(name, name)


def with_new_names(kind: Any, raw: Any, said: list[str] | None = None, where: str = "") -> Any:
    """Plain values of a config with the present name of every key.

    Args:
        kind: the dataclass.
        raw: its plain values.
        said: gets a line for each key that had its old name.
        where: dotted path of `kind`.
    """
    if isinstance(raw, list) and get_origin(kinds.bare(kind)) is tuple:
        inner = (tree.at(kind, (i,)) for i in range(len(raw)))
        return [with_new_names(k, v, said, where) for k, v in zip(inner, raw, strict=True)]
    if not isinstance(raw, Mapping):
        return raw
    value, fields = tree.named(kind), kinds.fields(kind)
    found: dict[Any, Any] = {}
    for name, below in raw.items():
        new = str(name) if value is not None else new_name(kind, str(name))
        key = f"{where}{name}"
        if new != name and new in raw:
            found[name] = below  # both names: the old one is refused as unknown
            continue
        if new != name and said is not None:
            said.append(f"{key} is called {where}{new} now")
        child = value or fields.get(new)
        found[new if new != str(name) else name] = (
            below if child is None else with_new_names(child, below, said, f"{where}{new}.")
        )
    return found


def tell(lines: list[str]) -> None:
    """Print each line once, for people."""
    for line in dict.fromkeys(lines):
        print(f"note: {line}", file=sys.stderr)
