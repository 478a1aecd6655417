"""Lists of values on the command line to the grid of runs that they ask for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lw_jax.config import parse, yaml_files
from lw_jax.config.run import run_directory
from lw_jax.config.schema import Config
from lw_jax.errors import UserError


@dataclass(frozen=True)
class Point:
    """One run of a grid: the text of every swept key's value, and its config."""

    values: dict[str, str]
    config: Config


def grid(
    path: str | Path,
    flags: Sequence[parse.Flag],
    over: Sequence[str | Path],
    swept: Sequence[parse.Flag],
) -> tuple[Path, list[Point]]:
    """The directory of a sweep, and its runs, each in a directory of its own inside; the last key
    varies fastest.

    Args:
        swept: dotted keys, each with its values in the syntax of a YAML list without brackets.

    Raises:
        UserError: a key is given twice, is no field, or has no, equal or wrong values; or the
            sweep is over where the runs go.
    """
    keys = [key for key, _ in swept]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--sweep {key}: given twice; list all its values at once")
        if key in ("name", "run_dir"):
            raise UserError(f"--sweep {key}: every run has its own already; sweep another key")
    lists = [_values(key, text) for key, text in swept]
    home = run_directory(parse.read(path, flags, over))
    points = []
    for chosen in itertools.product(*lists):
        pairs = list(zip(keys, chosen, strict=True))
        config = parse.read(path, [*flags, *pairs], over)
        own = str(home / "_".join(f"{_short(key, keys)}={_safe(text)}" for key, text in pairs))
        points.append(Point(dict(pairs), replace(config, run_dir=own)))
    if len({point.config.run_dir for point in points}) < len(points):
        raise UserError("--sweep: two values of a key look alike as names of a directory")
    return home, points


def _values(key: str, text: str) -> list[str]:
    """The values' own texts."""
    values = yaml_files.loads(f"[{text}]", f"--sweep {key}")
    found = [yaml_files.dumps(value, flow=True) for value in values]
    if not found or len(set(found)) < len(found):
        raise UserError(f"--sweep {key}: expected different values with commas; got {text!r}")
    return found


def _short(key: str, keys: Sequence[str]) -> str:
    """The end of a key that tells it from the others."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-") or "empty"
