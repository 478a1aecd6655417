"""A whole run, killed in training, between the stages and in the evaluation, ends as if never."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_jax.train.checkpoint import read_meta, steps
from lw_jax.train.diagnostics import TIMES
from tests.tiny.models import write_model

ROOT = Path(__file__).parents[2]
CONFIG = """
name: tiny
mesh: {{data: 1}}
sender: {{path: {home}/sender, dtype: float32}}
receivers:
  reader: {{path: {home}/reader, dtype: float32}}
data:
  facts: {{levels: [1, 2], questions: 2, eval_size: 24}}
bridge:
  latent_dim: 8
  source: {{hidden_states: {{layers: [1, 2], mix: concat}}}}
  compressor: {{perceiver: {{slots: 4, width: 16, heads: 2, depth: 1}}}}
  reader: {{soft_tokens: {{}}}}
objectives:
  answer_ce: {{weight: 1.0}}
  kd: {{weight: 0.5, schedule: {{start: 3}}}}
stages:
  fit:
    train:
      steps: 8
      batch_size: 2
      questions: 2
      curriculum: [{{level: 1, share: 0.5}}, {{level: 2, share: 0.5}}]
      optimiser: {{name: muon, lr: 0.02}}
      ema: 0.9
      log_every: 2
      eval_every: 4
      save_every: 3
      eval_rows: 2
  more:
    train: {{steps: 4, batch_size: 2, log_every: 1, eval_every: 0, save_every: 2}}
  report:
    evaluate: {{rows: 8, batch_size: 8, methods: [latent], bootstrap: 100}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    write_model(home / "sender", "llama")
    write_model(home / "reader", "mistral")
    (home / "tiny.yaml").write_text(CONFIG.format(home=home))
    return home / "tiny.yaml"


def cache(home: Path) -> dict[str, str]:
    """The launches share what they compile, however quickly it compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(config: Path, directory: Path) -> subprocess.Popen[str]:
    flags = ["--config", str(config), f"--run_dir={directory}"]
    return subprocess.Popen(
        [sys.executable, "-m", "lw_jax.launch", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | cache(config.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(config: Path, directory: Path) -> str:
    process = start(config, directory)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def kill_when(config: Path, directory: Path, condition: Callable[[Path], bool]) -> None:
    """Start the run and kill it as soon as its files show that the moment has come."""
    process = start(config, directory)
    deadline = time.monotonic() + 300
    while not condition(directory):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def lines(directory: Path) -> list[dict[str, Any]]:
    path = directory / "diagnostics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            found.append({k: v for k, v in json.loads(line).items() if k not in TIMES})
    return found


def result(directory: Path) -> Any:
    """Everything that may not depend on how often the run was killed."""
    final = {}
    for stage, last in (("fit", 8), ("more", 4)):
        root = directory / "checkpoints" / stage
        assert steps(root)[0] == last
        final[stage] = read_meta(root / str(last))["checksums"]
    metrics = json.loads((directory / "metrics.json").read_text())["receivers"]
    for methods in metrics.values():
        for figures in methods.values():
            del figures["seconds"]
    return final, metrics, lines(directory), (directory / "predictions.jsonl").read_text()


def stage_reached(stage: str, step: int) -> Callable[[Path], bool]:
    return lambda directory: any(
        (line["stage"], line["step"]) >= (stage, step) for line in lines(directory)
    )


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else "{}"


@pytest.mark.slow  # five launches; tests/train/test_resume.py kills the loop alone, and often
def test_a_killed_run_ends_as_an_undisturbed_one(config: Path, tmp_path: Path) -> None:
    finish(config, tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    at = random.Random(5).choice([2, 4, 6])
    kill_when(config, killed, stage_reached("fit", at))
    kill_when(config, killed, lambda d: "fit" in json.loads(read(d / "finished.json")))
    kill_when(config, killed, lambda d: (d / "checkpoints/more/4").is_dir())
    assert not (killed / "metrics.json").exists()
    output = finish(config, killed)
    assert "fit: done already" in output
    assert result(killed) == result(tmp_path / "undisturbed")
