"""What a config names by relative paths is found from any directory: models, rows, bridges."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lw_jax.config.parse import from_dict, to_yaml
from lw_jax.config.schema import Config
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.runs.directory import check_directory, run_directory
from lw_jax.runs.export import main as export
from lw_jax.runs.exported import LONGEST, about_bridge
from lw_jax.runs.places import found, located
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import make_models, make_run, raw_config

TASK = {"data": {"jsonl": {"train": "rows/train.jsonl"}}}


def write_rows(home: Path, count: int = 12) -> None:
    home.mkdir()
    facts = FactsRows("train", 0, 2, 2 * count)
    for i, name in enumerate(("train", "eval")):
        rows = [facts[i * count + n][0] for n in range(count)]
        texts = [{"context": r.context, "question": r.question, "answer": r.answers} for r in rows]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))


def test_rows_and_bridges_are_looked_for_above_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "project"
    run = home / "runs" / "tiny"
    run.mkdir(parents=True)
    write_rows(home / "rows")
    (home / "runs" / "other").mkdir()
    (tmp_path / "far").mkdir()
    raw: dict[str, Any] = raw_config({"llama": home / "a", "mistral": home / "b"}, run)
    raw["data"] = {"jsonl": {"train": ["rows/t*.jsonl", "rows/gone.jsonl"], "eval": "rows"}}
    raw["stages"]["wire"]["train"] |= {
        "data": {"squad": {"train": "rows/train.jsonl", "eval": None}},
        "init_from": "runs/other",
        "teacher": "~/runs/teacher",
        "tasks": {"ask": TASK},
        "curriculum": [{"share": 1, "mix": {"ask": 1}}],
    }
    raw["stages"]["test"]["evaluate"] |= {
        "data": {"jsonl": {"train": "none.jsonl", "eval": "rows/eval.jsonl"}},
        "rivals": {"twin": "runs/other"},
    }
    config = from_dict(raw)
    monkeypatch.chdir(home)
    assert located(config, run).data == config.data  # they are here
    monkeypatch.chdir(tmp_path / "far")
    there = located(config, run)
    rows, train, evaluate = there.data, there.stages["wire"].train, there.stages["test"].evaluate
    assert rows.jsonl.train == (f"{home}/rows/t*.jsonl", "rows/gone.jsonl")
    assert rows.jsonl.eval == f"{home}/rows"
    assert (train.data.squad.train, train.data.squad.eval) == (f"{home}/rows/train.jsonl", None)
    assert train.tasks["ask"].data.jsonl.train == f"{home}/rows/train.jsonl"
    assert train.init_from == evaluate.rivals["twin"] == f"{home}/runs/other"
    assert train.teacher == os.path.expanduser("~/runs/teacher")
    assert run_directory(replace(config, run_dir="~/a")) == Path.home() / "a"
    assert evaluate.data.jsonl.eval == f"{home}/rows/eval.jsonl"
    assert (evaluate.data.jsonl.train, evaluate.init_from) == ("none.jsonl", None)
    assert found("rajpurkar/squad", run) == "rajpurkar/squad"


@pytest.mark.slow
def test_a_bridge_is_exported_and_evaluated_on_its_rows_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "project"
    home.mkdir()
    write_rows(home / "rows")
    raw = raw_config(make_models(home), home / "runs" / "tiny", methods=["latent"], rows=4)
    raw["data"] = {"jsonl": {"train": "rows/train.jsonl", "eval": "rows/eval.jsonl"}}
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(home)
    make_run(from_dict(raw), Console(file=io.StringIO()))
    monkeypatch.chdir(tmp_path / "far")
    assert export([str(home / "runs" / "tiny"), str(home / "bridge")]) == 0
    assert about_bridge(home / "bridge")[LONGEST]
    assert main(["--evaluate", str(home / "bridge")]) == 0
    written = Path("runs/exported/bridge/evaluations/1/metrics.json")
    assert json.loads(written.read_text())["receivers"][RECEIVER]["latent"]["n"] == 4


def test_a_run_that_was_moved_finds_the_models_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "runs" / "moved"
    home.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[2]
    assert Path(found("zoo/tiny-llama", home)) == root / "zoo" / "tiny-llama"
    assert found("zoo/none", home) == "zoo/none"
    config = from_dict(raw_config({"llama": Path("a"), "mistral": Path("b")}, home))
    there = located(config, home, sender="zoo/tiny-qwen", receivers={RECEIVER: "zoo/tiny-llama"})
    assert there.sender is not None
    assert there.sender.path == str(root / "zoo" / "tiny-qwen")
    assert there.receivers[RECEIVER].path == str(root / "zoo" / "tiny-llama")


def test_a_run_goes_on_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, root = tmp_path / "runs" / "tiny", Path(__file__).parents[2]
    run.mkdir(parents=True)
    (tmp_path / "far").mkdir()

    def config(sender: Path) -> Config:
        return from_dict(raw_config({"llama": sender, "mistral": Path("zoo/tiny-mistral")}, run))

    old = config(Path("zoo/tiny-llama"))
    (run / "config.yaml").write_text(to_yaml(old))
    (run / "finished.json").write_text(json.dumps({next(iter(old.stages)): 1.0}))
    for here in (tmp_path / "far", root):
        monkeypatch.chdir(here)
        check_directory(config(Path("zoo/tiny-llama")))
        check_directory(config(root / "zoo" / "tiny-llama"))
        for other in (root / "zoo" / "tiny-qwen", root / "zoo" / "none", Path("none")):
            with pytest.raises(UserError, match=r"sender\.path was zoo/tiny-llama"):
                check_directory(config(other))
