"""A task of a few labels: probes and choices stand beside what the methods write."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from lw_jax.config.parse import from_dict
from lw_jax.data.topics import TOPICS
from lw_jax.evaluate import compare
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.report import lines
from lw_jax.runs.directory import Run
from lw_jax.stages import evaluate
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import make_models, make_run, raw_config

OPTIONS = {
    "methods": ["latent", "relay", "token_budget_bytes"],  # other sources, other texts, cut texts
    "rows": 12,
    "probe": {"rows": 40, "layers": [1], "l2": [0.1]},
}
Said = dict[str, list[Prediction]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Said]:
    """An evaluation, and what its methods said."""
    home = tmp_path_factory.mktemp("topics")
    raw = raw_config(make_models(home), home / "runs" / "tiny", **OPTIONS)
    raw["data"] = {"topics": {"sentences": 3, "own": 2, "eval_size": 40}}
    raw["bridge"]["bottleneck"] = {"rounded": {}}
    run = make_run(from_dict(raw), Console(file=io.StringIO(), width=200))
    stage = run.config.stages["test"].evaluate
    assert stage is not None
    right, said = compare.Comparison.run, {}

    def kept(self: Any, ctx: Any, name: str, *rest: Any) -> Any:
        found = right(self, ctx, name, *rest)
        said[name] = found[0]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.Comparison, "run", kept)
        evaluate.run(run, "test", stage)
    return run, said


@pytest.fixture(scope="module")
def metrics(ran: tuple[Run, Said]) -> dict[str, Any]:
    return json.loads((ran[0].run_dir / "metrics.json").read_text())


@pytest.fixture(scope="module")
def rows(ran: tuple[Run, Said]) -> list[dict[str, Any]]:
    text = (ran[0].run_dir / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_frozen_model_is_probed_on_the_rows_of_the_methods(metrics: dict[str, Any]) -> None:
    assert set(metrics["probe"]) == {"sender", RECEIVER}
    for probe in metrics["probe"].values():
        assert (probe["n"], probe["train_rows"], probe["layer"]) == (12, 40, 1)
        assert probe["classes"] == ["animals", "jobs", "places", "things"]
        assert probe["ci"][0] <= probe["accuracy"] <= probe["ci"][1]
    assert metrics["receivers"][RECEIVER]["latent"]["n"] == 12


def test_the_probes_are_reported_in_words(metrics: dict[str, Any]) -> None:
    said = [line for line in lines(RECEIVER, metrics) if line.startswith("Linear probe of")]
    assert len(said) == 2
    assert f"layer 1: accuracy {metrics['probe']['sender']['accuracy']:.3f}" in said[0]


def test_a_candidate_is_rated_after_the_very_message_of_its_method(
    ran: tuple[Run, Said], rows: list[dict[str, Any]]
) -> None:
    """The gold label as a candidate has the log-probability of the gold answer."""
    names = ["latent", "token_budget_bytes", "relay", "no_message", "zero", "mean", "deranged"]
    assert list(ran[1]) == names
    for name, said in ran[1].items():
        for p, row in zip(said, rows, strict=True):
            assert list(p.nats) == list(TOPICS), name
            assert p.nats[row["answers"][0]] == pytest.approx(-p.nll, rel=1e-4), name
    (latent, *_), (deranged, *_) = ran[1]["latent"], ran[1]["deranged"]
    assert latent.nats != deranged.nats


def test_the_choice_stands_in_all_that_is_written(
    ran: tuple[Run, Said], metrics: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    for name, figures in metrics["receivers"][RECEIVER].items():
        said = [row["receivers"][RECEIVER][name] for row in rows]
        for one in said:
            assert one["nats"][one["choice"]] == max(one["nats"].values())
        right = [one["choice"] in row["answers"] for one, row in zip(said, rows, strict=True)]
        assert figures["choice"] == pytest.approx(sum(right) / 12)
        low, high = figures["ci"]["choice"]
        assert low <= figures["choice"] <= high
    assert metrics["verdict"][RECEIVER]["choice"]["words"][0] in lines(RECEIVER, metrics)
    assert metrics["data"]["candidates"] == list(TOPICS)
    assert 3 / 12 <= metrics["data"]["most_frequent"] < 1
    screen = ran[0].console.file
    assert isinstance(screen, io.StringIO)
    assert "  choice " in screen.getvalue()
    assert screen.getvalue().count("choice: the most probable of animals, jobs, things, pl") == 1
