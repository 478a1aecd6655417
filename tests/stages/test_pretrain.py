"""The stage that makes the small models: from a config to a directory that says what it can do."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from lw_jax import launch
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import open_model
from lw_jax.pretrain.model_card import minutes

PROBLEMS = [
    "Nadia has 12 apples and buys 30 more. How many apples does she have?",
    "On Monday Tom sold 7 hats for $5 each to Nadia. How much did he earn?",
    "Each of 4 boxes holds 25 pens. How many pens are there, asks Tom?",
    "Lea walks 3 miles a day with Tom. How far does Lea walk in 14 days?",
]
CONFIG = """
name: tiny
mesh: {{data: 1}}
stages:
  make:
    pretrain:
      out: {out}
      arch: {{family: qwen2, width: 16, layers: 1, heads: 2, kv_heads: 1, head_dim: 8,
             mlp_width: 32, tied: true}}
      tokenizer: {{vocab_size: 300, samples: 100, single_digits: true}}
      steps: 3
      batch_size: 2
      max_tokens: 500
      facts: 0.4
      facts_copy: 0.2
      gsm8k_copy: 0.2
      gsm8k_solve: 0.2
      gsm8k_train: {train}
      gsm8k_eval: {test}
      log_every: 2
      save_every: 2
      eval_rows: 6
"""


def write_problems(path: Path, problems: list[str]) -> Path:
    lines = [json.dumps({"question": q, "answer": "It is 1.\n#### 1"}) for q in problems]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the run in `run` and the model in `model`."""
    home = tmp_path_factory.mktemp("pretrain")
    text = CONFIG.format(
        out=home / "model",
        train=write_problems(home / "train.jsonl", PROBLEMS[:3]),
        test=write_problems(home / "test.jsonl", PROBLEMS[3:]),
    )
    (home / "tiny.yaml").write_text(text)
    assert launch.main(["--config", str(home / "tiny.yaml"), f"--run_dir={home / 'run'}"]) == 0
    return home


def test_the_model_is_an_ordinary_directory(made: Path) -> None:
    found = open_model("model", ModelConfig(str(made / "model")))
    found.load(make_mesh(MeshConfig(data=1)))
    assert (found.arch.family, found.arch.width, found.arch.tied, found.arch.bos_id) == (
        "qwen2",
        16,
        True,
        None,
    )
    text = "\nQuestion: Who?\nAnswer: Lea"
    ids = found.tokenizer.encode(text)
    assert found.tokenizer.backend.decode(ids) == text


def test_what_it_can_do_is_measured_on_what_was_saved(made: Path) -> None:
    figures = json.loads((made / "run/metrics.json").read_text())["pretrain"]["make"]
    assert figures["facts"]["n"] == 6
    assert figures["read_back"]["n"] == 1
    assert figures["read_back"]["entities"] == 4  # 3, 14, Lea and Tom
    for kind in ("facts", "gsm8k"):
        found = figures["bits_per_byte"][kind]
        assert 2 < found["bits"] < 8  # three steps teach next to nothing
        if found["n"] > 1:
            assert found["ci"][0] <= found["bits"] <= found["ci"][1]
        else:  # nothing is known of another text
            assert found["ci"] == [None, None]
    assert {figures["bits_per_byte"][kind]["n"] for kind in ("facts", "gsm8k")} == {1, 6}
    assert figures["steps"] == 3
    assert figures["bad_steps"] == 0


def test_the_card_says_how_it_was_made(made: Path) -> None:
    card = (made / "model/README.md").read_text()
    assert f"python -m lw_jax.launch --config {made / 'tiny.yaml'}" in card
    assert "3 steps of 2 texts" in card
    line = re.search(r"\| 0\.000 \| 0\.000 to (\d\.\d{3}) \| 6 \|", card)
    assert line is not None
    assert 0.3 < float(line[1]) < 1.0  # none of six says little
    assert re.search(r"GSM8K questions: bits per byte \| \d\.\d{3} \| – \| 1 \|", card)
    assert "CPU cores" in card


def test_minutes_are_those_of_all_parts_of_the_run(tmp_path: Path) -> None:
    def line(stage: str, step: int, kind: str, **more: Any) -> str:
        return json.dumps({"stage": stage, "step": step, "kind": kind} | more)

    path = tmp_path / "diagnostics.jsonl"
    entries = [
        line("make", 100, "train", seconds_per_step=0.3),
        line("make", 100, "evaluate", seconds=99.0),
        line("other", 10, "train", seconds_per_step=50.0),
        line("make", 150, "train", seconds_per_step=1.8),
    ]
    path.write_text("\n".join(entries))
    assert minutes(path, "make") == 2.0


def test_a_limit_that_leaves_most_out_is_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--run_dir={tmp_path}", "--stages.make.pretrain.max_tokens=20"]
    assert launch.main(["--config", str(made / "tiny.yaml"), *flags]) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning: ")]
    assert len(said) == 1
    assert "stages.make.pretrain.max_tokens" in said[0]


def test_sigterm_between_steps_ends_it_with_the_code_of_shells(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While models load, say: what a stage does amid its steps is `tests/train/test_resume.py`."""
    monkeypatch.setattr(launch, "run_stage", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert launch.main(["--config", str(made / "tiny.yaml"), f"--run_dir={tmp_path}"]) == 143
    assert "run the same command again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "finished.json").exists()
