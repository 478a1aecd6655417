"""Probes stand beside the methods in metrics.json, and in words under the table."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lw_jax.config.parse import from_dict
from lw_jax.config.run import run_directory
from lw_jax.evaluate.report import lines
from lw_jax.stages import evaluate
from tests.evaluate.run_world import RECEIVER, make_models, make_run, raw_config

OPTIONS = {"methods": ["text"], "rows": 12, "probe": {"rows": 40, "layers": [1], "l2": [0.1]}}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("probe")
    raw = raw_config(make_models(home), home / "runs" / "tiny", **OPTIONS)
    raw["data"] = {"topics": {"sentences": 3, "own": 2, "eval_size": 40}}
    config = from_dict(raw)
    run = make_run(config, Console(file=io.StringIO()))
    stage = config.stages["test"].evaluate
    assert stage is not None
    evaluate.run(run, "test", stage)
    path: Path = run_directory(config) / "metrics.json"
    return json.loads(path.read_text())


def test_every_frozen_model_is_probed_on_the_rows_of_the_methods(metrics: dict) -> None:
    assert set(metrics["probe"]) == {"sender", RECEIVER}
    for probe in metrics["probe"].values():
        assert (probe["n"], probe["train_rows"], probe["layer"]) == (12, 40, 1)
        assert probe["classes"] == ["animals", "jobs", "places", "things"]
        assert probe["ci"][0] <= probe["accuracy"] <= probe["ci"][1]
    assert metrics["receivers"][RECEIVER]["text"]["n"] == 12


def test_the_probes_are_reported_in_words(metrics: dict) -> None:
    said = [line for line in lines(RECEIVER, metrics) if line.startswith("Linear probe of")]
    assert len(said) == 2
    assert f"layer 1: accuracy {metrics['probe']['sender']['accuracy']:.3f}" in said[0]
