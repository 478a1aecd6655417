"""Files written whole, and the manifest of a directory: the digest of every file in it, so that
damage is found before anything is read.

A manifest is written last: a directory without one is not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "files.json"


def write_manifest(directory: Path) -> None:
    """Writes the manifest of a finished directory."""
    part = directory / f"{MANIFEST}.part"
    part.write_text(json.dumps(_digests(directory), indent=1), encoding="utf-8")
    os.replace(part, directory / MANIFEST)


def check_manifest(directory: Path) -> None:
    """Checks that the directory holds exactly what its manifest says.

    Raises:
        ValueError: it is not finished, or a file is missing or has changed; says which.
    """
    if not (directory / MANIFEST).is_file():
        raise ValueError(f"{MANIFEST} is missing: it was not finished")
    written = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    here = _digests(directory)
    for name, digest in written.items():
        if name not in here:
            raise ValueError(f"{name} is missing")
        if here[name] != digest:
            raise ValueError(f"{name} has changed")


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (MANIFEST, f"{MANIFEST}.part"):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file completely or not at all; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Writes a JSON-lines file completely or not at all."""
    write_text(path, "".join(json.dumps(_finite(x), ensure_ascii=False) + "\n" for x in lines))


def append_line(path: Path, content: Any) -> None:
    """Appends one JSON line, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(content), ensure_ascii=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {str(k): _finite(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(v) for v in content]
    return content
