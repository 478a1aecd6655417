"""Which of several processes this one is: from the config, plain variables, SLURM's; what is wrong
is one line."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lw_jax.errors import UserError
from lw_jax.utils import files, hosts
from lw_jax.utils.hosts import HostsConfig, Place, first_host, join, place

ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_NODELIST": "gpu[003-006]",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_LOCALID": "0",
}


def test_one_process_is_alone() -> None:
    assert place(HostsConfig(), {}) is None
    assert place(HostsConfig(count=1), SLURM) is None
    assert place(HostsConfig(), SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    join(HostsConfig(count=1), SLURM, print)
    assert hosts.first()
    assert hosts.count() == 1


def test_the_config_and_plain_variables() -> None:
    own = HostsConfig("a:6340", 3, 1)
    assert place(own, {}) == Place("a:6340", 3, 1, None, "hosts")
    said = {"JAX_COORDINATOR_ADDRESS": "b:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert place(HostsConfig(), said) == Place("b:1", 2, 1, None, "hosts")
    assert place(HostsConfig(index=0), said) == Place("b:1", 2, 0, None, "hosts")
    assert place(own, SLURM) == Place("a:6340", 3, 1, None, "hosts")
    assert place(HostsConfig("[fe80::1]:6340", 2, 1), {}) is not None


def test_slurm_gives_each_task_its_place() -> None:
    assert place(HostsConfig(), SLURM) == Place("gpu003:61481", 4, 2, None, "SLURM job 41")
    tasks = SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "2"}
    one_each = place(HostsConfig(), tasks)
    assert one_each is not None
    assert one_each.devices == (2,)  # all tasks of the node see all of its GPUs
    bound = place(HostsConfig(), tasks | {"CUDA_VISIBLE_DEVICES": "2"})
    assert bound is not None
    assert bound.devices is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,login1", "gpu7"),
        ("gpu[003-007,012],login1", "gpu003"),
        ("gpu[5,7]", "gpu5"),
        ("a,b[1-2]", "a"),
    ],
)
def test_the_first_node(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("config", "environ", "said"),
    [
        (HostsConfig(count=2), {}, "hosts.coordinator (JAX_COORDINATOR_ADDRESS) and hosts.index"),
        (HostsConfig("a:1", 2), {}, "hosts.index (JAX_PROCESS_ID) missing"),
        (HostsConfig("nowhere", 2, 0), {}, "expected HOST:PORT"),
        (HostsConfig("a:1", 2, 2), {}, "hosts.index: 2 of 2 processes; they count from 0"),
        (HostsConfig("a:1", 2), {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID: expected a whole"),
    ],
)
def test_what_is_not_right(config: HostsConfig, environ: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        place(config, environ)
    assert said in str(error.value)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_host_that_does_not_come_is_one_line() -> None:
    config = HostsConfig(f"127.0.0.1:{free_port()}", 2, 1, 1.0)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"process 1 of 2 waited 1 s for process 0 at 127"):
        join(config, {}, print)
    assert time.monotonic() - began < 30
    assert hosts.count() == 1


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts._here, "index", 1)
    files.write_text(tmp_path / "a", "text")
    files.append_line(tmp_path / "b", {})
    files.write_npz(tmp_path / "c" / "d", {})
    files.write_manifest(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(hosts._here, "index", 0)
    files.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").is_file()


@pytest.mark.slow
def test_process_0_says_who_is_missing() -> None:
    code = (
        "import os\n"
        "from lw_jax.utils.hosts import HostsConfig, join\n"
        "from lw_jax.launch import guarded\n"
        f"config = HostsConfig('127.0.0.1:{free_port()}', 2, 0, 3.0)\n"
        "raise SystemExit(guarded(lambda: join(config, os.environ, print) or 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "waited 3 s for the other processes" in done.stderr.splitlines()[-1]
