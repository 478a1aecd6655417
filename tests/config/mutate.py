"""Mutations of a text: bytes, lines, indentation, and pieces that are odd in YAML."""

from __future__ import annotations

import random
from typing import Any

from lw_jax.config.yaml_files import dumps, loads

PLAIN: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e30, 10**19, 10**39, 2**31, 2**63, float("nan"),
    float("inf"), "", "x", "\0", "\n", "a b", "é", ".", "..", "/", "(", "x" * 5000, [], {}, [0],
    [[]], [None], {"x": 1}, {"": 0}, [1, 1], [-1], ["x", "x"], [float("nan")],
)  # fmt: skip
"""Values that are put in the place of others."""
ODD = (
    "?", "? [a, b]", "? {a: b}", ": x", "- ", "&a", "*a", "<<: *a", "&a [*a]", "!!int abc",
    "!!float abc", "!!bool foo", "!!timestamp foo", "!!map foo", "!!seq {}", "!!set {a}",
    "!!str", "!!binary aGk=", "!!python/object/apply:os.getcwd []", "!mine x", "1" * 5000,
    "0x" + "f" * 5000,
    "1e400", "-.inf", ".nan", "[" * 60, "{" * 60, "]", "}", "\t", "\0", "\ufeff", "\x85", "\u2028",
    '"', "'", "|", ">", "|9", "%YAML 9.9", "---", "...", "@", "`", "#", "\\", '"\\ud800"',
    '"\\x00"',
    "null", "~", "true", "-1", "0", "1e29", "9" * 30, "[]", "{}", "''", "a: b: c", "é" * 20,
    "\r",
)  # fmt: skip


def mutated(text: str, draw: random.Random) -> bytes:
    """A text with one or two changes, as the bytes of a file."""
    if draw.random() < 0.4:
        value = loads(text, "x")
        for _ in range(draw.randint(1, 2)):
            value = _replaced(value, draw)
        return dumps(value).encode()
    for _ in range(draw.randint(1, 2)):
        text = draw.choice(_CHANGES)(text, draw)
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.05:
        at = draw.randrange(len(data) + 1)
        data = data[:at] + bytes(draw.randrange(256) for _ in range(2)) + data[at + 1 :]
    return data if draw.random() > 0.01 else text.encode("utf-16", "surrogatepass")


def _replaced(value: Any, draw: random.Random) -> Any:
    """Plain values with one of them replaced, or left out."""
    if not value or not isinstance(value, dict | list) or draw.random() < 0.1:
        return draw.choice(PLAIN)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    at = draw.choice(keys)
    changed = value.copy()
    if draw.random() < 0.05:
        del changed[at]
    else:
        changed[at] = _replaced(changed[at], draw)
    return changed


def _insert(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(ODD) + text[at:]


def _value(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    some = [i for i, line in enumerate(lines) if ": " in line]
    if not some:
        return text
    at = draw.choice(some)
    lines[at] = lines[at].partition(": ")[0] + ": " + draw.choice(ODD)
    return "\n".join(lines)


def _entry(text: str, draw: random.Random) -> str:
    """Another value in a flow list or mapping."""
    places = [i for i, c in enumerate(text) if c in ",[{"]
    if not places:
        return text
    at = draw.choice(places) + 1
    end = next((i for i in range(at, len(text)) if text[i] in ",]}\n"), len(text))
    return text[:at] + " " + draw.choice(ODD) + text[end:]


def _cut(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + text[at + draw.randint(1, 30) :]


def _character(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + chr(draw.choice((draw.randrange(128), draw.randrange(0xD800)))) + text[at:]


def _line(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    way = draw.randrange(5)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(other, lines[at])
    elif way == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif way == 3:
        lines[at] = " " * draw.randint(1, 3) + lines[at]
    else:
        lines[at] = lines[at].removeprefix("  ")
    return "\n".join(lines)


_CHANGES = (_insert, _value, _value, _entry, _cut, _character, _line)
