"""The launch scripts pass on that a run was stopped; under SLURM the job is queued again."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINS = """
trap 'echo saved; exit 143' TERM
echo began
while :; do sleep 0.05; done
"""


def run(tmp_path: Path, command: str, slurm: bool) -> subprocess.Popen[str]:
    queue = tmp_path / "scontrol"
    queue.write_text('#!/bin/sh\necho "queued: $*"\n')
    queue.chmod(0o755)
    script = f"set -euo pipefail; source launch/venv.sh; run_or_queue_again bash -c {command!r}"
    found = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found.pop("SLURM_JOB_ID", None)
    if slurm:
        found["SLURM_JOB_ID"] = "17"
    return subprocess.Popen(
        ["bash", "-c", script], cwd=ROOT, env=found, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("slurm", [False, True])
def test_a_stopped_run_is_taken_for_one_to_run_again(slurm: bool, tmp_path: Path) -> None:
    path = tmp_path / "trains.sh"
    path.write_text(TRAINS)
    process = run(tmp_path, f"exec bash {path}", slurm)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert output.splitlines() == ["saved", *(["queued: requeue 17"] if slurm else [])]


@pytest.mark.parametrize("code", [0, 2])
def test_other_ends_are_passed_on(code: int, tmp_path: Path) -> None:
    process = run(tmp_path, f"exit {code}", slurm=True)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == code
