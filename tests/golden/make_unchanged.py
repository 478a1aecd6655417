"""Makes `unchanged.json` beside it: what the code at commit f3f8990 computes, for
`tests/test_unchanged.py` to hold later code to.

    git worktree add /tmp/before f3f8990
    cp -r tests/golden tests/test_unchanged.py /tmp/before/tests/
    cd /tmp/before && python -m tests.golden.make_unchanged [PART ...]

Parts that are named are made anew (all of them, if none is): `starts`, `bridges`, `old_run` (with
`old_run/run.tar.xz`), `quickstart` (five minutes of two cores). Values that later code computes
would prove nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401  (the same compiler flags and devices as in the test)
from lw_jax import launch
from tests import test_unchanged as unchanged


def starts() -> dict[str, Any]:
    """The start of every case."""
    found = {}
    for name in unchanged.CASES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as home:
            found[name] = unchanged.described(unchanged.start(name, Path(home)))
        count = len(found[name]["drawn"]) + len(found[name]["measured"])
        print(f"{name}: {count} leaves, losses {found[name]['losses']}")
        print(f"{name}: {time.monotonic() - began:.0f} s")
    return found


def bridges() -> list[dict[str, Any]]:
    """What every bridge of the zoo sends and answers, on this processor."""
    return [{name: unchanged.sent_and_answered(name) for name in unchanged.BRIDGES}]


def old_run() -> list[list[float]]:
    """Make `run.tar.xz`; the losses of a run that starts from it, on this processor."""
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "old_run"
        assert launch.main(["--config", str(unchanged.OLD_CONFIG), f"--run_dir={run}"]) == 0
        (run / ".lock").unlink()
        config = (run / "config.yaml").read_text(encoding="utf-8")
        (run / "config.yaml").write_text(config.replace(str(run), "old_run"), encoding="utf-8")
        with tarfile.open(unchanged.OLD_RUN, "w:xz") as packed:
            packed.add(run, "old_run", filter=nobody)
    with tempfile.TemporaryDirectory() as home:
        return [unchanged.start_from_old_run(Path(home))]


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """A packed file that says nothing about who packed it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def quickstart() -> dict[str, Any]:
    """The figures of the quickstart."""
    with tempfile.TemporaryDirectory() as home:
        return unchanged.quickstart_figures(unchanged.run_quickstart(Path(home)))


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "starts": ("starts", starts),
    "bridges": ("bridges", bridges),
    "old_run": ("started_from_old_run", old_run),
    "quickstart": ("quickstart", quickstart),
}
"""By name: the key in `unchanged.json`, and what makes its value."""


def main(asked: list[str]) -> None:
    os.chdir(unchanged.ROOT)
    path = unchanged.GOLDEN
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, make in (PARTS[part] for part in asked or PARTS):
        known[key] = make()
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
