"""Two real processes on this host train a tiny bridge together: as one process does, killed and
resumed by one process, and stopped after the same step."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from lw_jax.train.checkpoint import read_meta
from lw_jax.train.diagnostics import read
from lw_jax.utils.files import has_manifest
from tests.tiny.run import make_models, raw_config

ROOT = Path(__file__).parents[2]
STEPS = 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and its models."""
    home = tmp_path_factory.mktemp("several")
    raw = raw_config(make_models(home), home / "run")
    train = {"steps": STEPS, "batch_size": 8, "accumulate": 2, "log_every": 1, "save_every": 5}
    raw["stages"] = {"wire": {"train": train | {"eval_every": 10, "eval_rows": 8}}}
    raw["mesh"] = {"data": -1}
    (home / "config.yaml").write_text(json.dumps(raw))
    return home


def start(home: Path, run: str, count: int, *flags: str) -> list[subprocess.Popen[str]]:
    """Processes that run the config together, of two devices each; one has one device."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    found = []
    for index in range(count):
        several = f"--xla_force_host_platform_device_count={min(2, count)}"
        environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": several}
        own = [f"--run_dir={home / run}", *flags]
        if count > 1:
            own += [f"--hosts.coordinator=127.0.0.1:{port}", f"--hosts.count={count}"]
            own += [f"--hosts.index={index}", "--mesh.fsdp=2"]
        command = [sys.executable, "-m", "lw_jax.launch", "--config", str(home / "config.yaml")]
        with (home / f"{run}.{index}").open("a") as out:
            found.append(
                subprocess.Popen(
                    [*command, *own], cwd=ROOT, env=environ, stdout=out, stderr=out, text=True
                )
            )
    return found


def said(home: Path, run: str) -> str:
    return "\n".join(file.read_text() for file in sorted(home.glob(f"{run}.*")))


def ended(home: Path, run: str, processes: list[Any], code: int = 0) -> None:
    codes = [process.wait(timeout=900) for process in processes]
    assert codes == [code] * len(processes), said(home, run)


def until(there: Callable[[], bool], processes: list[Any], home: Path, run: str) -> None:
    end = time.monotonic() + 900
    while not there():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), said(home, run)
        time.sleep(0.02)


def params_of(run: Path, step: int) -> list[np.ndarray]:
    path = run / "checkpoints" / "wire" / str(step)
    shapes = ocp.metadata(path, checkpointable_name="params").metadata
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return [
        np.asarray(x) for x in jax.tree.leaves(ocp.load(path, like, checkpointable_name="params"))
    ]


def losses(run: Path) -> list[float]:
    return [e["loss"] for e in read(run / "diagnostics.jsonl") if e["kind"] == "train"]


def test_they_are_killed_and_one_process_goes_on_to_the_same_numbers(home: Path) -> None:
    ended(home, "one", start(home, "one", 1))
    two = start(home, "two", 2)
    until(lambda: has_manifest(home / "two" / "checkpoints" / "wire" / "10"), two, home, "two")
    for process in two:
        process.kill()
    for process in two:
        process.wait()
    reached = len(losses(home / "two"))
    assert reached < STEPS, "it was over before it was killed"
    ended(home, "two", start(home, "two", 1))
    assert "resumed after step" in said(home, "two")
    assert losses(home / "one") == pytest.approx(losses(home / "two"), abs=1e-5)
    for a, b in zip(params_of(home / "one", STEPS), params_of(home / "two", STEPS), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    tokens = [
        [e["tokens"] for e in read(home / run / "diagnostics.jsonl") if "tokens" in e]
        for run in ("one", "two")
    ]
    assert tokens[0] == tokens[1]  # counted over the rows of both


def test_one_that_is_asked_stops_both_after_the_same_step(home: Path) -> None:
    more = "--stages.wire.train.steps=5000"
    two = start(home, "stopped", 2, more, "--stages.wire.train.save_every=5000")
    until(lambda: (home / "stopped" / "diagnostics.jsonl").exists(), two, home, "stopped")
    two[1].send_signal(signal.SIGTERM)
    ended(home, "stopped", two, 143)
    (step,) = [int(p.name) for p in (home / "stopped" / "checkpoints" / "wire").iterdir()]
    assert f"stopped after step {step}:" in said(home, "stopped")
    assert read_meta(home / "stopped" / "checkpoints" / "wire" / str(step))["step"] == step
    assert len(losses(home / "stopped")) == step


def test_processes_with_other_configs_are_refused(home: Path) -> None:
    flags = ["--hosts.timeout=120"]
    two = start(home, "other", 2, *flags)
    two[1].kill()
    two[1].wait()
    args = [str(x) for x in two[1].args]  # type: ignore[union-attr]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    again = subprocess.run(
        [*args, "--seed=7"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )
    two[0].kill()
    two[0].wait()
    assert again.returncode == 2, again.stderr
    assert "was given another config than process 0" in again.stderr
