"""The plan of a config: what each device holds, what does not fit, and what to change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest

from lw_jax.config.parse import read
from lw_jax.launch import main
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.runs.doctor import examined
from lw_jax.runs.plan import Budget, budgets
from lw_jax.runs.session import Session
from tests.config.conftest import Write

ROOT = Path(__file__).parents[2]
GIB = 2**30


def planned(path: Path, tensor: int = 1) -> dict[str, Budget]:
    seen = examined(read(path), memory=False)
    mesh = make_mesh(MeshConfig(data=1, tensor=tensor), jax.devices()[:tensor])
    return {one.stage: one for one in budgets(seen, mesh, 8 * GIB)}


@pytest.mark.slow
def test_bytes_are_those_that_the_devices_then_hold(write: Write) -> None:
    path = write()
    found = planned(path)
    assert list(found) == ["stages.fit.train", "stages.report.evaluate"]
    config = read(path)
    spec = Session().open("reader", config.receivers["reader"])
    loaded = spec.load(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    real = sum(x.nbytes for x in jax.tree.leaves(loaded.params))
    of = {name: count for _, name, count in found["stages.fit.train"].parts}
    assert of["receiver reader"] == real
    assert of["optimiser and averages"] >= 2 * of["bridge and heads"]
    assert of["activations and gradients"] > of["bridge and heads"]
    assert found["stages.fit.train"].total == sum(of.values())

    report = {name: count for _, name, count in found["stages.report.evaluate"].parts}
    arch, sizes = loaded.arch, examined(config, memory=False).sizes
    tokens = sizes["reader/context"] + sizes["reader/ask"] + 12
    a_token = 2 * arch.layers * arch.kv_heads * arch.head_dim * 4
    assert report["keys and values of reader"] == 8 * tokens * a_token


@pytest.mark.slow
def test_models_are_spread_over_a_mesh(write: Write) -> None:
    one, two = (planned(write(), tensor) for tensor in (1, 2))
    for stage in one:
        alone, spread = (
            sum(count for kind, _, count in of[stage].parts if kind == "weights")
            for of in (one, two)
        )
        assert 0.5 <= spread / alone < 0.6  # norms are on every device


@pytest.mark.parametrize(
    ("parts", "advice"),
    [
        ((90, 5, 20, 5), "spread the models (mesh.fsdp, mesh.tensor), or set quant"),
        ((5, 90, 20, 5), "lower latent_dim"),
        ((5, 20, 90, 5), "lower batch_size, accumulate more"),
        ((5, 5, 20, 90), "lower the evaluation's batch_size"),
        ((5, 5, 5, 5), None),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_to_change(
    parts: tuple[int, ...], advice: str | None
) -> None:
    kinds = ("weights", "bridge", "work", "cache")
    each = tuple((kind, kind, n * GIB) for kind, n in zip(kinds, parts, strict=True))
    said = Budget("stages.fit.train", each).over(100 * GIB)
    assert (said is None) == (advice is None)
    assert advice is None or (said or "").startswith(
        f"stages.fit.train: {sum(parts):.1f} GiB a device, which has 100.0 GiB: {advice}"
    )


def test_it_is_printed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(**{"stages.fit.train.reuse": {"memory_gb": 2.0}, "data.facts.size": 8})
    assert main(["--plan", "--config", str(path), "--devices=1", "--device_gb=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 device (planned on the host), data 1 x fsdp 1 x tensor 1, 2.8 GiB each"
    shown = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    assert shown[:3] == ["sender, up to its highest tap", "receiver reader", "bridge and heads"]
    assert any(line.split() == "host: kept in memory, at most 1.9 GiB".split() for line in lines)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices=99", "--device_gb=8"], "--devices: jax was started with 8 devices"),
        (["--devices=4"], "--device_gb: missing"),
        (["--devices=some", "--device_gb=8"], "--devices: expected a number from 1 up; got 'some'"),
        (["--devices=1.5", "--device_gb=8"], "--devices: expected a whole number; got 1.5"),
        (["--devices=6", "--device_gb=8", "--mesh.data=-1", "--mesh.tensor=4"], "mesh.tensor 4: 4"),
        (
            ["--devices=3", "--device_gb=8", "--mesh.data=3"],
            "stages.fit.train: 8 contexts a microbatch cannot be split over 3 devices",
        ),
    ],
)
def test_devices_that_cannot_be_are_one_line(
    write: Write, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["--plan", "--config", str(write()), *flags]) == 2
    assert f"error: {said}" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_devices_are_planned_where_there_is_one(write: Write) -> None:
    path = write(**{"stages.fit.train.batch_size": 16})
    flags = ["--devices=8", "--device_gb=80", "--mesh.data=4", "--mesh.model=2"]
    environ = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "lw_jax.launch", "--plan", "--config", str(path), *flags],
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "8 devices (planned on the host), data 4 x fsdp 1 x tensor 2, 74.5 GiB each" in done.stdout
    )


def test_no_weight_has_to_be_there(write: Write, tmp_path: Path, capsys: Any) -> None:
    """A model that is larger than any device here is planned from its config and its tokenizer."""
    place = shutil.copytree(ROOT / "zoo/tiny-mistral", tmp_path / "large")
    (place / "model.safetensors").unlink()
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 4096}))
    flags = ["--devices=1", "--device_gb=3", f"--receivers.reader.path={place}"]
    assert main(["--plan", "--config", str(write()), *flags]) == 2
    said = capsys.readouterr().err
    assert "stages.fit.train" in said
    assert "spread the models (mesh.fsdp, mesh.tensor)" in said


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="the compiler for TPUs is not there")
def test_a_tpu_that_is_not_here(write: Write) -> None:
    command = [sys.executable, "-m", "lw_jax.launch", "--plan", "--config", str(write())]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", "--mesh.fsdp=4"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "4 devices (TPU v5 lite), data 1 x fsdp 4 x tensor 1, 16.0 GiB each" in done.stdout


def test_a_tpu_needs_its_compiler(write: Write, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("lw_jax.runs.plan.find_spec", lambda name: None)
    assert main(["--plan", "--config", str(write()), "--topology=v5e:2x2"]) == 2
    assert "the compiler for TPUs is not there" in capsys.readouterr().err
    both = ["--topology=v5e:2x2", "--devices=4", "--device_gb=16"]
    assert main(["--plan", "--config", str(write()), *both]) == 2
    assert "leave --devices out" in capsys.readouterr().err
