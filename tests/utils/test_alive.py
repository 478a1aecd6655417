"""A terminal does not stay still: it says what is compiled, and how long that took last time."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lw_jax.utils import alive
from tests.tiny.shipped import ROOT

COMPILER = logging.getLogger("jax._src.interpreters.pxla")


def begins(program: str, shapes: str = "[f32[2]]") -> logging.LogRecord:
    said = "Compiling %s with global shapes and types %s. Argument mapping: ()."
    return COMPILER.makeRecord("", logging.DEBUG, "", 0, said, (program, shapes), None)


def ended(program: str, seconds: float) -> logging.LogRecord:
    said = f"Finished XLA compilation of {program} in {seconds} sec"
    return COMPILER.makeRecord("", logging.DEBUG, "", 0, said, (), None)


def test_what_is_compiled_and_how_long_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "WORTH_KEEPING", 0.0)
    first = alive.Programs(tmp_path)
    first.emit(begins("jit(score)"))
    assert re.fullmatch(r"compiling score \(\d+ s, the first time\)", first.words())
    first.emit(begins("jit(write)"))
    assert "score" in first.words() and "write" in first.words()
    first.emit(ended("jit(score)", 12.34))
    assert "score" not in first.words()
    first.keep()
    second = alive.Programs(tmp_path)
    second.emit(begins("jit(score)"))
    assert "12.3 s last time" in second.words()
    second.emit(begins("jit(score)", "[f32[4]]"))  # other shapes are another program
    assert "the first time" in second.words()
    second.emit(begins("jit(write)"))
    second.emit(ended("jit(write)", 3.0))
    second.keep()
    assert sorted(json.loads((tmp_path / alive.FILE).read_text()).values()) == [3.0, 12.3]


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000, '{"a": 1%s}' % ("0" * 400), "3"])
def test_times_that_are_damaged_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / alive.FILE).write_text(text)
    assert alive.Programs(tmp_path).before == {}


def test_nothing_is_added_to_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with alive.watched(0.01):
        time.sleep(0.1)
        print("a figure")
    assert capsys.readouterr().out == "a figure\n"


def read(command: list[str], environ: dict[str, str], limit: float) -> list[tuple[float, bytes]]:
    """What a command writes to a terminal, with the seconds at which it came."""
    main, other = pty.openpty()
    began, found = time.monotonic(), []
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=other, stdout=other, stderr=other, close_fds=True
    )
    os.close(other)
    try:
        while time.monotonic() - began < limit:
            if not select.select([main], [], [], 0.1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                data = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            found.append((time.monotonic() - began, data))
    finally:
        if process.poll() is None and time.monotonic() - began >= limit:
            process.kill()
        process.wait(60)
        os.close(main)
    found.append((time.monotonic() - began, b""))
    text = b"".join(data for _, data in found).decode("utf-8", "replace")
    assert process.returncode == 0, text[-2000:]
    return found


def gaps(found: list[tuple[float, bytes]]) -> tuple[float, float]:
    """The longest time without a word, and when it ended."""
    times = [0.0, *(at for at, _ in found)]
    return max((b - a, b) for a, b in itertools.pairwise(times))


STILL = """
import logging, time
from rich.console import Console
from lw_jax.utils import alive
logging.basicConfig()  # what jax says to us alone is not said to whoever listens above
log = logging.getLogger("jax._src.interpreters.pxla")
with alive.watched(0.2):
    alive.doing("loading tiny-llama")
    time.sleep(1)
    print("a figure")
    print("half a line", end="", flush=True)
    time.sleep(1)
    print()
    with Console().status(alive.Compiling("turning")):
        time.sleep(0.5)
        log.debug("Compiling %s with global shapes and types %s.", "jit(turn)", "[]")
        time.sleep(0.8)
    log.debug("Finished XLA compilation of jit(turn) in 0.8 sec")
    alive.doing("after what turns")
    time.sleep(1)
    log.debug("Compiling %s with global shapes and types %s.", "jit(step)", "[]")
    log.warning("said by jax")
    time.sleep(1.5)
"""


def test_a_terminal_does_not_stay_still() -> None:
    found = read([sys.executable, "-c", STILL], dict(os.environ), 60)
    text = b"".join(data for _, data in found).decode()
    assert "... loading tiny-llama, " in text
    assert "turning" in text and "compiling turn (1 s, the first time)" in text
    assert "... after what turns, " in text
    assert "... compiling step (1 s, the first time)" in text
    assert "DEBUG" not in text and "WARNING:jax._src.interpreters.pxla:said by jax" in text
    # what is said meanwhile goes, and does not stand within a line
    assert "\x1b[2Ka figure\r\n" in text
    assert "half a line\r\n" in text
    assert text.endswith("\x1b[2K")


@pytest.mark.timeout(1900)  # what the command itself may take, and a little
@pytest.mark.slow
def test_the_quickstart_never_stays_still(tmp_path: Path) -> None:
    """The whole quickstart with fewer steps and rows, compiling everything and then nothing."""
    cache = tmp_path / "cache"
    cache.mkdir()
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
    }
    few = [
        "--stages.fit.train.steps=12",
        "--stages.fit.train.eval_every=6",
        "--stages.fit.train.eval_rows=16",
        "--stages.before.evaluate.rows=32",
        "--stages.report.evaluate.rows=32",
    ]
    words = [sys.executable, "-m", "lw_jax.launch", "--config", "configs/quickstart.yaml", *few]
    for name, most in (("cold", 10.0), ("warm", 3.0)):
        found = read([*words, f"--run_dir={tmp_path / name}"], environ, 1800)
        longest, at = gaps(found)
        assert longest <= most, f"{name}: {longest:.1f} s without a word, until {at:.1f} s"
        said = b"".join(data for _, data in found).decode("utf-8", "replace")
        assert name == "warm" or re.search(r"compiling \w+ \(\d+ s, the first time\)", said)
        assert (tmp_path / name / "report.html").is_file()
    assert json.loads((cache / alive.FILE).read_text())
