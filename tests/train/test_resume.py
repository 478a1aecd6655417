"""Kill it at any moment, run the same command again: the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lw_jax.train.diagnostics import TIMES
from tests.conftest import HALF_WRITTEN

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "tiny" / "training.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # of one device
}


def start(directory: Path, *flags: str) -> subprocess.Popen[str]:
    """The toy run in a process group of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            *("-W", "error", "-W", HALF_WRITTEN),
            str(ROOT / "tests/tiny/training.py"),
            str(directory),
            *flags,
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(directory: Path, *flags: str) -> tuple[int, str]:
    """Exit code and output of the toy run."""
    process = start(directory, *flags)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def digest(output: str) -> str:
    """The digest of the final parameters."""
    assert "final " in output, output
    return output.split("final ")[1].strip()


def lines(directory: Path) -> list[dict[str, object]]:
    """The run's diagnostics without times."""
    text = (directory / "diagnostics.jsonl").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, object]]]:
    directory = tmp_path_factory.mktemp("undisturbed")
    code, output = run(directory)
    assert code == 0, output
    return digest(output), lines(directory)


@pytest.mark.slow
def test_killed_at_every_kind_of_moment(
    undisturbed: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    """While it writes, evaluates, deletes, between the stages."""
    for when in ("save:8", "seal:8", "evaluate:12", "delete", "switch"):
        code, output = run(tmp_path, "--kill", when)
        assert code == -signal.SIGKILL, (when, output)
    code, output = run(tmp_path)
    assert code == 0, output
    assert (digest(output), lines(tmp_path)) == undisturbed
    assert {p.name for p in (tmp_path / "checkpoints").glob("*/*")} == {"28", "30"}


@pytest.mark.slow
def test_killed_at_random_moments(
    undisturbed: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    moments, kills = random.Random(3), 0
    for _ in range(3):
        process = start(tmp_path, "--pause", "0.05")
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(moments.uniform(0.1, 1.2))
        process.kill()
        process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    code, output = run(tmp_path)
    assert code == 0, output
    assert (digest(output), lines(tmp_path)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_at_any_event_of_the_file_system(
    name: str, undisturbed: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    """Thirty signals, ten of a kind, at events drawn from all those of a run; some of the runs are
    hit twice. SIGTERM and SIGINT may also come before the loop looks for them."""
    code, output = run(tmp_path / "whole", "--count")
    assert code == 0, output
    events = int(output.split("events ")[1].split()[0])
    draw, sent, number = random.Random(name), 0, signal.Signals[name]
    while sent < 10:
        directory = tmp_path / str(sent)
        for _ in range(draw.choice((1, 1, 2))):
            flags = ("--event", str(draw.randrange(1, events)), "--signal", name)
            code, output = run(directory, *flags)
            assert code in (0, -number, 128 + number), output
            assert "Traceback" not in output or code == -signal.SIGINT, output
            sent += code != 0
        code, output = run(directory)
        assert code == 0, output
        assert "damaged" not in output
        assert (digest(output), lines(directory)) == undisturbed
        left = {p.name for p in (directory / "checkpoints").glob("*/*")}
        assert left == {"28", "30"}, left


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, undisturbed: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    """The signal reaches the processes that prepare batches as well."""
    process = start(tmp_path, "--pause", "0.1", "--workers", "1")
    assert process.stdout is not None
    first = process.stdout.readline()
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, first + output
    assert "run the same command again" in output
    saved = {int(p.name) for p in (tmp_path / "checkpoints/first").iterdir()}
    assert max(saved) >= 5
    assert f"stopped after step {max(saved)}" in output
    code, output = run(tmp_path)
    assert code == 0, output
    assert f"resumed after step {max(saved)}" in output
    assert (digest(output), lines(tmp_path)) == undisturbed
