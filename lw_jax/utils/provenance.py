"""Which code is running: its version, and its commit where it is a checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import lw_jax

_HOME = Path(lw_jax.__file__).resolve().parents[1]


@cache
def commit(home: Path) -> str | None:
    """The commit checked out at a directory, `+` at its end if files were changed since; None: the
    directory is not the root of a checkout, or there is no git."""

    def git(*arguments: str) -> str:
        made = subprocess.run(
            ["git", "-C", str(home), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return made.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != home:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, str]:
    """`lw_jax`, the version, and `commit`, where the code is a checkout."""
    found = commit(_HOME)
    return {"lw_jax": lw_jax.__version__, **({} if found is None else {"commit": found})}
