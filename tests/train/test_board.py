"""TensorBoard events while a stage trains, and of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lw_jax.__main__ import main
from lw_jax.train import board
from lw_jax.train.loop import Evaluation, fit
from lw_jax.train.state import TrainState
from tests.tiny import events
from tests.tiny.reported import answers, make, rows
from tests.tiny.training import fresh, job, make_step


def test_events_are_there_while_it_trains(tmp_path: Path) -> None:
    compiled, seen = make_step(fresh()[1]), []

    def evaluate(state: TrainState, step: int) -> Evaluation:
        seen.append(events.scalars(tmp_path).get("train/loss", {}))
        return Evaluation({"reader/accuracy": step / 10}, None, ("asked -> 'said'",))

    tried = job(
        tmp_path,
        steps=6,
        log_every=2,
        eval_every=3,
        evaluate=evaluate,
        step_for=lambda _: compiled,
        tensorboard=True,
    )
    fit(tried)
    folder = tmp_path / board.FOLDER / tried.name
    lines = [json.loads(x) for x in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["loss"] for e in lines if e["kind"] == "train"}
    assert events.scalars(folder)["train/loss"] == pytest.approx(losses)
    assert events.scalars(folder)["evaluate/reader/accuracy"] == pytest.approx({3: 0.3, 6: 0.6})
    assert "asked -> 'said'" in events.texts(folder)["samples/text_summary"]


def test_no_events_where_none_are_wanted(tmp_path: Path) -> None:
    compiled = make_step(fresh()[1])
    fit(job(tmp_path, steps=2, evaluate=None, step_for=lambda _: compiled))
    assert not (tmp_path / board.FOLDER).exists()


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = rows(30)
    home = make(tmp_path / "run", examples, answers(examples, 24))
    for _ in range(2):  # written anew, never twice
        assert main(["tensorboard", str(home)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(home / "tensorboard")] * 2
    found = events.scalars(home / "tensorboard")
    assert found["train/loss"] == pytest.approx({10: 0.4, 20: 0.2, 30: 4 / 30, 40: 0.1})
    assert list(found["evaluation/reader/latent/em"].values()) == pytest.approx([0.8])
    said = events.texts(home / "tensorboard")
    assert "| latent | 0.800 [" in said["table/reader/text_summary"]
    rows_ = [text for tag, text in said.items() if tag.startswith("rows/")]
    assert len(rows_) == 20 and examples[0].context in rows_[0] + rows_[1]
    assert "too loud" in said["alarms/text_summary"]
    hparams = [v for _, v in events.summaries(home / "tensorboard") if "hparams" in v.tag]
    assert any(b"zoo/tiny-llama" in v.metadata.plugin_data.content for v in hparams)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = board.importlib.util.find_spec
    monkeypatch.setattr(
        board.importlib.util, "find_spec", lambda n: None if n == "tensorboardX" else find(n)
    )
    with pytest.raises(board.UserError, match=r"pip install 'lw_jax\[tensorboard\]'"):
        board.check()
