"""LatentWire's configs from end to end on the models that ship, a few steps each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lw_jax.config.parse import read
from lw_jax.launch import main
from lw_jax.utils.registry import chosen

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "latentwire"
RECEIVERS = ("mistral", "qwen")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles in SQuAD's format, two passages each."""
    rng = random.Random(0)

    def passage(place: str) -> dict[str, Any]:
        year, height = rng.randint(1000, 1999), rng.randint(10, 99)
        asked = [("When was it built?", f"{year}"), ("How tall is it?", f"{height} metres")]
        questions = [
            {"question": f"{question[:-1]} in {place}?", "answers": [{"text": answer}]}
            for question, answer in asked
        ]
        return {
            "context": f"The tower of {place} was built in {year}. It is {height} metres tall.",
            "qas": questions,
        }

    articles = [
        {"title": f"T{i}", "paragraphs": [passage(f"{x}{i}") for x in ("Ur", "Ys")]}
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("squad") / "rows.json"
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiles for a long time on slow cores
@pytest.mark.parametrize("name", ["smoke", "hero", "default"])
def test_it_runs_from_end_to_end(
    name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the configs name the models from there
    path = CONFIGS / f"{name}.yaml"
    config = read(path)
    trained = {n: stage.train for n, stage in config.stages.items() if stage.train is not None}
    (report,) = set(config.stages) - set(trained)
    flags = [
        f"--data.squad.train={rows}",
        "--data.squad.eval=null",
        "--data.squad.eval_share=0.3",
        "--data.squad.validation_share=0.3",
        "--mesh.data=1",
        f"--stages.{report}.evaluate.rows=4",
        f"--stages.{report}.evaluate.batch_size=4",
        f"--stages.{report}.evaluate.bootstrap=50",
    ]
    for stage, train in trained.items():
        values = {"steps": 2, "log_every": 1, "eval_every": 2, "eval_rows": 4, "workers": 0}
        values |= {"batch_size": 2 * train.accumulate}
        if train.text_batches is not None:
            values |= {"text_batches.steps": 2}
        flags += [f"--stages.{stage}.train.{key}={value}" for key, value in values.items()]
    assert main(["--config", str(path), f"--run_dir={tmp_path / 'run'}", *flags]) == 0

    lines = list(map(json.loads, (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()))
    for stage, train in trained.items():
        seen = {key for line in lines if line["stage"] == stage for key in line}
        for objective in chosen(train.objectives or config.objectives):
            assert f"share/{objective}" in seen
            assert {f"loss/{receiver}/{objective}" for receiver in RECEIVERS} <= seen
        norms = [line["grad_norm"] for line in lines if line["stage"] == stage and "loss" in line]
        assert max(norms) < 1e5
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for receiver in RECEIVERS:
        assert {"text", "latent", "deranged", "mean"} <= set(metrics["receivers"][receiver])
