"""Measurements in a process of their own, which print their rows last."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def rows_of(command: Sequence[str], environ: Mapping[str, str], seconds: int) -> dict[str, Any]:
    """The rows that a command prints as JSON in its last line; `failed`, in words, if it has none.

    Args:
        command: run in the tree's root.
        environ: its environment variables.
        seconds: after which it is ended.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {seconds} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no words"])[-1][:300]}
    rows: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return rows
