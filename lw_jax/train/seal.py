"""A seal on a directory: the digest of every file, so that damage is seen before anything reads it.

It is put on last: a directory without one was not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

SEAL = "files.json"


def seal(directory: Path) -> None:
    """Write the seal of a finished directory."""
    part = directory / f"{SEAL}.part"
    part.write_text(json.dumps(_digests(directory), indent=1), encoding="utf-8")
    os.replace(part, directory / SEAL)


def check_seal(directory: Path) -> None:
    """Whether the directory holds exactly what was sealed.

    Raises:
        ValueError: not finished, or says which file is missing or changed.
    """
    if not (directory / SEAL).is_file():
        raise ValueError(f"{SEAL} is missing: it was not finished")
    sealed, here = json.loads((directory / SEAL).read_text(encoding="utf-8")), _digests(directory)
    for name, digest in sealed.items():
        if name not in here:
            raise ValueError(f"{name} is missing")
        if here[name] != digest:
            raise ValueError(f"{name} has changed")


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (SEAL, f"{SEAL}.part"):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
