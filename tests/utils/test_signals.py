"""Signals that come at an odd moment."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lw_jax.launch import guarded


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_memory_is_freed_is_not_lost(number: int) -> None:
    """Python ignores what is raised there, and says so; the run has to end all the same."""

    class Freed:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            for _ in range(1000):  # the handler runs between two of these
                pass

    def work() -> int:
        Freed()
        time.sleep(2)
        return 0

    began = time.monotonic()
    assert guarded(work) == 128 + number
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_ends_first(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a half imported extension the process may be aborted."""
    (tmp_path / "imported_slowly.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nENDED = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> int:
        importlib.import_module("imported_slowly")
        time.sleep(2)
        return 0

    assert guarded(work) == 128 + number
    assert sys.modules.pop("imported_slowly").ENDED


def test_ctrl_c_while_the_command_is_loaded_says_nothing(tmp_path: Path) -> None:
    """A module that it imports at first takes long here."""
    slow = "import sys, time\nprint('imported', flush=True)\ntime.sleep(30)\n"
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(slow)
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    with subprocess.Popen(
        [sys.executable, "-m", "lw_jax", "configs"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == b"imported\n"
        done.send_signal(signal.SIGINT)
        assert done.communicate(timeout=20) == (b"", b"")
    assert done.returncode == 130
