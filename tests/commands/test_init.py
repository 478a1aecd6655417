"""A config for two models and a data set: it is checked, can be run, and says what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lw_jax.__main__ import main
from lw_jax.config import parse
from lw_jax.data.load import load_rows
from lw_jax.runs.doctor import examine
from lw_jax.runs.draft import _bridge, _taps, draft
from tests.tiny.arch import decoder

ROOT = Path(__file__).parents[2]
SENDER, RECEIVER = str(ROOT / "zoo/tiny-llama"), str(ROOT / "zoo/tiny-qwen")


def rows(path: Path, count: int = 200, **names: str) -> Path:
    """A file of short texts with one long one, under other field names."""
    lines = []
    for i in range(count):
        text = f"Ada keeps {i} goats in the barn. Ben keeps {i + 1} cats in the attic."
        values = {"context": text * (8 if i == 7 else 1), "question": "How many?", "answer": i}
        lines.append(json.dumps({names.get(k, k): v for k, v in values.items()}))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_config_for_own_rows_is_ready_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows(tmp_path / "qa.jsonl", context="passage", question="query", answer="output")
    assert main(["init", SENDER, RECEIVER, str(data), "-o", "qa.yaml"]) == 0
    said = capsys.readouterr().out
    config = parse.read("qa.yaml")
    assert config.data.jsonl is not None
    assert config.data.jsonl.context_field == "passage"
    assert config.name == "qa"
    assert config.layout.max_tokens is not None
    assert config.layout.max_tokens < 100  # the long text is left out
    assert "looked at are longer and left out" in said
    assert "parameters" in said and "bytes of a message" in said
    found = examine(config, memory=False)
    assert [f for f in found if f.level == "error"] == []
    assert main(["init", SENDER, RECEIVER, str(data), "-o", "qa.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "measured"), [(40, True), (3, False)])
def test_of_few_rows_enough_are_held_out(
    count: int,
    measured: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows(tmp_path / "few.jsonl", count)
    assert main(["init", SENDER, RECEIVER, str(data), "-o", "few.yaml"]) == 0
    said = capsys.readouterr().out
    config = parse.read("few.yaml")
    assert config.data.jsonl is not None and config.stages["fit"].train is not None
    assert config.data.jsonl.validation_share == 0.1
    assert (config.stages["fit"].train.eval_every > 0) == measured
    assert ("eval_every 0" in said) != measured
    for split in ("train", "eval", *(("validation",) if measured else ())):
        assert len(load_rows(config.data, split, config.seed)) > 0


def test_too_few_rows_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows(tmp_path / "one.jsonl", 1)
    assert main(["init", SENDER, RECEIVER, str(data), "-o", "one.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no row in the split" in line
    assert not Path("one.yaml").exists()


def test_what_cannot_be_used_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = rows(tmp_path / "odd.jsonl", context="words")
    far = rows(tmp_path / "far.jsonl", 60)
    far.write_text(far.read_text().replace("in the barn", "in the barn" * 400))
    cases = {
        (SENDER, RECEIVER, str(far)): "texts looked at are longer than 512 tokens; cut them into",
        (SENDER, RECEIVER, str(odd)): "its rows have words, question, answer and none of context",
        (SENDER, RECEIVER, "nothing"): "no such file or directory, and none of facts",
        (SENDER, "./nowhere", "facts"): "nowhere",
    }
    for words, reason in cases.items():
        assert main(["init", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert main(["init", SENDER, RECEIVER, "facts", "-o", "no/x.yaml"]) == 2
    assert "there is no directory no" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"far.jsonl", "odd.jsonl"}


def test_a_run_is_called_like_its_file_as_far_as_a_name_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, name in (("my \u00fcber run.yaml", "my-ber-run"), ("\u00fc.yaml", "bridge")):
        assert main(["init", SENDER, RECEIVER, "facts", "-o", file]) == 0
        assert parse.read(file).name == name


def test_fields_that_are_not_used_are_named(tmp_path: Path) -> None:
    data = rows(tmp_path / "labels.jsonl", 60, question="label", answer="id", context="text")
    made = draft(SENDER, RECEIVER, str(data), "x")
    assert f"data: {data}, its fields text; not used: label" in made.notes


def test_the_rules_follow_the_models() -> None:
    assert _taps(decoder(layers=4)) == [0, 1, 2, 3, 4]
    assert _taps(decoder(layers=30)) == [0, 4, 8, 16, 24]
    assert [_bridge([0], decoder(width=w), 8)["latent_dim"] for w in (224, 896, 4096)] == [
        256,
        640,
        1024,
    ]
