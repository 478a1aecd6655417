"""SHA-256 of files; of large ones it is kept in the user's cache and not made twice.

A kept digest counts as long as the file at that path has the same size, times of change and inode.
A file that was changed a moment ago is not kept: it might change once more within the resolution of
its times. A file of the hub's cache is named by its digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lw_jax.utils.files import DamagedFileError, read_json, write_json
from lw_jax.utils.program_cache import own_folder

LARGE = 2**26
"""Bytes from which on a digest is kept; a smaller file takes less than a tenth of a second."""
SETTLED = 2.0
"""Seconds for which a file must not have changed."""


def sha256(path: Path, environ: Mapping[str, str] = os.environ) -> bytes:
    """The SHA-256 of a file's bytes.

    Args:
        path: the file.
        environ: says where the user's cache is.

    Raises:
        OSError: the file cannot be read.
    """
    target = path.resolve()
    named = path.is_symlink() and target.parent.name == "blobs" and target.is_file()
    if named and re.fullmatch("[0-9a-f]{64}", target.name):
        return bytes.fromhex(target.name)
    state = _state(target)
    folder = own_folder(environ, "digests") if state["size"] >= LARGE else None
    record = None
    if folder is not None:
        record = folder / f"{hashlib.sha256(str(target).encode()).hexdigest()[:32]}.json"
        with suppress(OSError, DamagedFileError):
            kept = read_json(record, dict)
            if kept.get("state") == state and re.fullmatch("[0-9a-f]{64}", str(kept.get("sha256"))):
                return bytes.fromhex(kept["sha256"])
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    quiet = time.time_ns() - max(state["changed"], state["modified"]) > SETTLED * 1e9
    if record is not None and quiet and _state(target) == state:
        with suppress(OSError):
            write_json(record, {"path": str(target), "state": state, "sha256": digest.hex()})
    return digest


def _state(path: Path) -> dict[str, int]:
    """What changes when a file does."""
    held = path.stat()
    return {
        "size": held.st_size,
        "modified": held.st_mtime_ns,
        "changed": held.st_ctime_ns,
        "inode": held.st_ino,
        "device": held.st_dev,
    }
