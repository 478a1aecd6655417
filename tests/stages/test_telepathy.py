"""Versions of Latent Telepathy from end to end on the models that ship, a few steps each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lw_jax.config.yaml_files import load
from lw_jax.launch import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "telepathy"
VERSIONS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if not p.is_symlink())


def problems(path: Path, count: int, seed: int) -> None:
    """Word problems in GSM8K's format."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        who, what = rng.choice(["Ann", "Bob", "Eve"]), rng.choice(["pens", "figs", "hats"])
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        question = f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have?"
        answer = f"{who} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {what}.\n#### {a + b}"
        lines.append(json.dumps({"question": question, "answer": answer}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("gsm8k")
    problems(home / "train.jsonl", 24, 0)
    problems(home / "test.jsonl", 6, 1)
    return home


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the configs name the models from there


def run(version: str, rows: Path, run_dir: Path, *flags: str) -> dict[str, Any]:
    """`metrics.json` of a run of the version, narrow and two steps long."""
    short = [
        f"--run_dir={run_dir}",
        f"--data.gsm8k.train={rows / 'train.jsonl'}",
        f"--data.gsm8k.eval={rows / 'test.jsonl'}",
        "--data.gsm8k.decontaminate=0",
        "--mesh.data=1",
        "--data.gsm8k.validation_share=0.1",
        "--stages.report.evaluate.rows=4",
        "--stages.report.evaluate.bootstrap=50",
        "--stages.report.evaluate.decode.max_new_tokens=8",
        "--stages.report.evaluate.methods=[latent]",
    ]
    compressor = "dit" if version in ("v12", "v13", "v14") else "perceiver"
    sizes = {"slots": 8, "width": 32, "heads": 2, "depth": 1}
    sizes |= {"steps": 2} if compressor == "dit" else {}
    short += [f"--bridge.compressor.{compressor}.{key}={n}" for key, n in sizes.items()]
    stages = load(CONFIGS / f"{version}.yaml")["stages"]
    if "calibrate" in stages:
        short += [
            "--stages.calibrate.calibrate.rows=8",
            "--stages.calibrate.calibrate.batch_size=8",
        ]
    if "fit" in stages:
        short += [
            "--stages.fit.train.steps=2",
            "--stages.fit.train.log_every=1",
            "--stages.fit.train.eval_every=0",
        ]
    assert main(["--config", str(CONFIGS / f"{version}.yaml"), *short, *flags]) == 0
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    for figures in found["receivers"]["mistral"].values():
        assert figures["n"] == 4
        assert figures["disagreements"] == 0
    return found


def losses(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "diagnostics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.slow
def test_v04_is_the_bridge_of_v03_1_under_the_primer_it_was_trained_with(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run("v03_1", rows, tmp_path / "v03_1")
    (line,) = before["warnings"]
    assert "primer 'Answer:' -> 'Analysis of received thought vector:'" in line
    assert line in capsys.readouterr().out
    after = run(
        "v04", rows, tmp_path / "v04", f"--stages.report.evaluate.init_from={tmp_path / 'v03_1'}"
    )
    assert after["parameters"]["digest"] == before["parameters"]["digest"]
    assert after["warnings"] == []
    rates = [line["learning_rate"] for line in losses(tmp_path / "v03_1")]
    assert rates == pytest.approx([2e-4, 2e-4])
    same, other = (m["receivers"]["mistral"]["latent"]["nll"] for m in (after, before))
    assert same != other


@pytest.mark.slow
@pytest.mark.parametrize("version", [v for v in VERSIONS if v not in ("v03_1", "v04")])
def test_a_version_runs_from_end_to_end(version: str, rows: Path, tmp_path: Path) -> None:
    run(version, rows, tmp_path / version)
    lines = losses(tmp_path / version)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(abs(line["loss"]) < 1e6 for line in lines)
