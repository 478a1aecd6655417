"""`--help`: every key with its type, default and meaning, read from the dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lw_jax.config import tree, yaml_files
from lw_jax.config.command import USAGE
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.utils import kinds

INTRODUCTION = """\
Keys are nested YAML in the file; a flag --a.b.c=VALUE overrides the key a.b.c.
VALUE is YAML: 3, 1e-3, true, null, [text, latent], '{path: x}'. NAME is a name of your own.
A part whose keys are all optional is set by giving any of them, or by '{}'.
"""


@dataclass
class Section:
    """The keys of one dataclass.

    Attributes:
        key: dotted key of the dataclass.
        doc: its meaning.
        leaves: for each key its name, its type and default, and its meaning.
    """

    key: str
    doc: str
    leaves: list[tuple[str, str, str]] = field(default_factory=list)


def sections(
    kind: Any = Config, key: str = "", doc: str = "", seen: dict[Any, str] | None = None
) -> Iterator[Section]:
    """The sections under a config dataclass, depth first.

    Args:
        kind: the dataclass.
        key: its dotted key.
        doc: its meaning.
        seen: where each dataclass was first shown; it is shown in full only there. None:
            everywhere.
    """
    docs, hints = tree.docs(kinds.bare(kind)), kinds.fields(kind)
    here = Section(key, doc)
    below: list[tuple[bool, Any, str, str]] = []
    if seen is not None and key:
        before = seen.setdefault(kinds.bare(kind), key)
        if before != key:
            yield Section(key, f"{doc} (keys as under {before})")
            return
    for one in dataclasses.fields(kinds.bare(kind)):
        inner = hints[one.name]
        value = tree.named(inner)
        about = docs.get(one.name, "")
        if kinds.fields(value or inner):
            path = f"{key}.{one.name}".lstrip(".") + (".NAME" if value else "")
            below.append((value is not None, value or inner, path, about))
        else:
            ends = kinds.between(inner)
            kind_of = kinds.short(inner) + _default(one) + (f" ({ends})" if ends else "")
            here.leaves.append((one.name, kind_of, about))
    yield here
    for _, part, where, text in sorted(
        below, key=lambda b: b[0]
    ):  # names that the user chooses come last
        yield from sections(part, where, text, seen)


def print_help(key: str, console: Console) -> None:
    """Prints the usage and every key, or those under `key`.

    Raises:
        UserError: no such key.
    """
    wanted = [part for part in key.split(".") if part]
    found = [s for s in sections(seen=None if key else {}) if _under(s.key, wanted)]
    if not found:  # a single key
        above = [s for s in sections() if _same(s.key, wanted[:-1])]
        found = [
            Section("", "", [(key, *x[1:]) for s in above for x in s.leaves if x[0] == wanted[-1]])
        ]
    if not any(s.leaves for s in found):
        keys = [f"{s.key}.{leaf[0]}".lstrip(".") for s in sections() for leaf in s.leaves]
        parts = [s.key for s in sections() if s.key]
        near = difflib.get_close_matches(key, [*parts, *keys], 1)
        guess = f"; did you mean {near[0]}?" if near else "; --help alone shows all"
        raise UserError(f"--help {key}: no such key{guess}")
    if not key:
        console.print(Text(f"{USAGE}\n{INTRODUCTION}"))
    for section in found:
        if section.key:
            console.print(Text.assemble("\n", (section.key, "bold"), "  ", section.doc))
        if section.leaves:
            table = Table(box=None, show_header=False, padding=(0, 1))
            table.add_column(min_width=16, no_wrap=True)
            table.add_column(min_width=26, max_width=32)
            table.add_column()
            for leaf_row in section.leaves:
                table.add_row(*map(Text, leaf_row))
            console.print(table)


def _under(key: str, wanted: list[str]) -> bool:
    """Whether a section's key is the wanted one or below it; NAME matches any name."""
    parts = key.split(".") if key else []
    return len(parts) >= len(wanted) and all(
        a in (b, "NAME") for a, b in zip(parts, wanted, strict=False)
    )


def _same(key: str, wanted: list[str]) -> bool:
    return _under(key, wanted) and key.count(".") + bool(key) == len(wanted)


def _default(one: dataclasses.Field[Any]) -> str:
    value = tree.default(one)
    if value is dataclasses.MISSING:
        return ", required"
    if isinstance(value, str) and not value.isprintable():
        return f" = {json.dumps(value, ensure_ascii=False)}"  # line breaks as \\n
    text = yaml_files.dumps(list(value) if isinstance(value, tuple) else value, flow=True)
    return f" = {text}"
