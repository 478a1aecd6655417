"""From lists of values, in a file or on the command line, to the grid of runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lw_jax.config import parse, yaml_files
from lw_jax.config.schema import Config
from lw_jax.errors import UserError
from lw_jax.runs.directory import run_directory

LONGEST = 60
"""Characters of a value in a directory's name; of a longer one its beginning and a digest."""


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        values: the text of every swept key's value.
        config: its config.
    """

    values: dict[str, str]
    config: Config


def grid(
    path: str | Path,
    flags: Sequence[parse.Flag],
    over: Sequence[str | Path],
    swept: Sequence[parse.Flag],
) -> tuple[Path, list[Point]]:
    """The directory of a sweep, and its runs; the last key varies fastest.

    Every run has a directory of its own inside the sweep's.

    Args:
        path: the config file.
        flags: flags for all runs.
        over: config files that override the first, in order.
        swept: dotted keys, each with its values in the syntax of a YAML list without brackets;
            they come after those of the files' own `sweep`, or replace their values.

    Raises:
        UserError: a key is given twice, is no field, or has no, equal or wrong values; or the
            sweep is over the directories of the runs.
    """
    given = [key for key, _ in swept]
    for key in given:
        if given.count(key) > 1:
            raise UserError(f"--sweep {key}: given twice; list all its values at once")
    raw, own = parse.files(path, over)
    lists = {key: _texts(f"sweep.{key}", values) for key, values in own.items()}
    lists |= {key: _texts(f"--sweep {key}", _loaded(key, text)) for key, text in swept}
    for key in lists:
        if key in ("name", "run_dir"):
            raise UserError(f"sweep of {key}: every run has its own already; sweep another key")
        if any(flag == key or flag.startswith(f"{key}.") for flag, _ in flags):
            raise UserError(
                f"--{key}: it is swept, too, and a run has one value of it; leave one out"
            )
    home = run_directory(parse.with_flags(raw, flags))
    points = []
    for chosen in itertools.product(*lists.values()):
        pairs = list(zip(lists, chosen, strict=True))
        config = parse.with_flags(raw, [*flags, *pairs])
        inside = "_".join(f"{_short(key, list(lists))}={_safe(text)}" for key, text in pairs)
        points.append(Point(dict(pairs), replace(config, run_dir=str(home / inside))))
    if len({point.config.run_dir for point in points}) < len(points):
        raise UserError("sweep: two values of a key look alike as names of a directory")
    seen: dict[str, Point] = {}
    for point in points:
        plain = parse.to_dict(replace(point.config, run_dir=None))
        first = seen.setdefault(json.dumps(plain, sort_keys=True), point)
        if first is not point:
            differing = [k for k, text in point.values.items() if text != first.values[k]]
            said = ", ".join(f"{first.values[k]} and {point.values[k]} of {k}" for k in differing)
            raise UserError(f"sweep: {said} mean the same, so two runs would be one; leave one out")
    return home, points


def _loaded(key: str, text: str) -> list[Any]:
    return list(yaml_files.loads(f"[{text}]", f"--sweep {key}"))


def _texts(where: str, values: Sequence[Any]) -> list[str]:
    """The values as text."""
    found = [yaml_files.dumps(value, flow=True) for value in values]
    if not found or len(set(found)) < len(found):
        raise UserError(f"{where}: expected different values; got [{', '.join(found)}]")
    return found


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a key that no other key has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _safe(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-") or "empty"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
