"""Standard output that cannot hold a character, or that nobody reads."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lw_jax.__main__ import cli


def test_a_terminal_of_plain_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["lw-jax", "configs", "a_run_\udcff", "--help"])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        cli()
    signal.signal(signal.SIGINT, handler)
    assert stop.value.code == 0
    for text in ("a row…", "runs/\udcff", "é"):
        print(text)
    sys.stdout.flush()
    assert rb"a row\u2026" in held.getvalue() and rb"runs/\udcff" in held.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ["lw_jax", "help"],
        ["lw_jax", "configs"],
        ["lw_jax", "--version"],
        ["lw_jax", "--help", "all"],  # by Rich, which ends the process itself
        ["lw_jax.results", "--help"],
    ],
)
def test_output_that_nobody_reads_ends_it_without_a_word(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["lw_jax", "--version"], ["lw_jax.results", "--help"]])
def test_output_onto_a_full_disk_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", *words], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: the disk is full")
