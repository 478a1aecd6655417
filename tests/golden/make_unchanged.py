"""Makes `unchanged.json` beside it: what the code at commit f3f8990 computes, for
`tests/test_unchanged.py` to hold later code to.

    git worktree add /tmp/before f3f8990
    cp -r tests/golden tests/test_unchanged.py /tmp/before/tests/
    cd /tmp/before && python -m tests.golden.make_unchanged [PART ...]

Parts that are named are made anew (all of them, if none is): `starts`. To be run at the root of
that tree; values that the code of today computes would prove nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401  (the same compiler flags and devices as in the test)
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


PARTS: dict[str, Callable[[], Any]] = {"starts": starts}


def main(asked: list[str]) -> None:
    os.chdir(unchanged.ROOT)
    path = unchanged.GOLDEN
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in asked or PARTS:
        known[part] = PARTS[part]()
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
