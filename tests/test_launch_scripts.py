"""The launch scripts pass on that a run was stopped; under SLURM the job is queued again."""

from __future__ import annotations

import os
import shlex
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


def would_run(script: str, *words: str, **environ: str) -> list[list[str]]:
    """The commands that a launch script would start."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    found |= {"DRY": "1", "VENV": "no/where"} | environ
    done = subprocess.run(
        ["bash", f"launch/{script}", *words],
        cwd=ROOT,
        env=found,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.removeprefix("would run: ") for line in done.stdout.splitlines()]
    return [shlex.split(line) for line in lines]


RUN = ["no/where/bin/python", "-m", "lw_jax.launch", "--config", "c.yaml"]


def test_one_node() -> None:
    assert would_run("multigpu.sh", "c.yaml", "--name=a b") == [[*RUN, "--name=a b"]]
    found = would_run("multigpu.sh", "c.yaml", FSDP="4", TENSOR="2")
    assert found == [[*RUN, "--mesh.fsdp=4", "--mesh.tensor=2"]]


def test_slurm_asks_for_nodes_and_then_starts_a_process_on_each() -> None:
    (asked,) = would_run("slurm.sh", "c.yaml", "--seed=3", NODES="4", SBATCH="-p gpu", FSDP="8")
    assert asked[0] == "sbatch"
    assert {"--nodes=4", "--ntasks-per-node=1", "--requeue", "--signal=B:TERM@120"} <= set(asked)
    assert asked[-5:] == ["-p", "gpu", "launch/slurm.sh", "c.yaml", "--seed=3"]
    (started,) = would_run("slurm.sh", "c.yaml", "--seed=3", SLURM_JOB_ID="9", FSDP="8")
    assert started[:3] == ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert started[3:] == [*RUN, "--mesh.fsdp=8", "--seed=3"]


def test_several_hosts_by_hand() -> None:
    first, second = would_run("hosts.sh", "c.yaml", "--name=a b", HOSTS="gpu1 gpu2", FSDP="2")
    assert first[:3] == ["ssh", "-tt", "gpu1"]
    assert second[:3] == ["ssh", "-tt", "gpu2"]
    there = shlex.split(second[3])
    assert there[:4] == ["cd", str(ROOT), "&&", "env"]
    told = dict(word.split("=") for word in there[4:9])
    assert told == {
        "COORDINATOR": "gpu1:6340",
        "COUNT": "2",
        "INDEX": "1",
        "FSDP": "2",
        "VENV": "no/where",
    }
    assert there[9:] == ["bash", "launch/hosts.sh", "c.yaml", "--name=a b"]
    (own,) = would_run("hosts.sh", "c.yaml", COORDINATOR="gpu1:1", COUNT="2", INDEX="1")
    assert own == [*RUN, "--hosts.coordinator=gpu1:1", "--hosts.count=2", "--hosts.index=1"]


def test_a_tpu() -> None:
    (asked,) = would_run("tpu.sh", "c.yaml", TPU="mine", ZONE="z", TENSOR="4")
    assert asked[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "mine"]
    assert asked[6:8] == ["--zone=z", "--worker=all"]
    assert asked[8] == "--command=cd lw_jax && env TENSOR=4 bash launch/tpu.sh c.yaml"
    assert would_run("tpu.sh", "c.yaml") == [RUN]


@pytest.mark.parametrize(
    ("script", "words", "environ", "said"),
    [
        *((name, (), {}, "usage: ") for name in ("multigpu", "slurm", "hosts", "tpu")),
        (
            "hosts",
            ("c.yaml",),
            {"COORDINATOR": "gpu1:1", "COUNT": "2"},
            "COORDINATOR, COUNT, INDEX",
        ),
        ("tpu", ("c.yaml",), {"TPU": "mine"}, "ZONE, that of the TPU mine, is missing"),
    ],
)
def test_what_is_missing_is_one_line(
    script: str, words: tuple[str, ...], environ: dict[str, str], said: str
) -> None:
    """As bad input of the program: exit code 2, and nothing is begun."""
    names = ("HOSTS", "COORDINATOR", "COUNT", "INDEX", "TPU", "ZONE")
    plain = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"launch/{script}.sh", *words],
        cwd=ROOT,
        env=plain | {"DRY": "1"} | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
