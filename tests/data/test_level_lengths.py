"""Levels of a curriculum by the length of the text, where a file has none of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lw_jax.config.parse import build
from lw_jax.data import cloze, jsonl, squad
from lw_jax.errors import UserError

WORDS = "Ada Lumen keeps fifty hens in the yard of the old mill"


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.jsonl"
    texts = [f"{i} {WORDS * n}" for n in (1, 2, 4) for i in range(5)]
    path.write_text("".join(json.dumps({"context": text}) + "\n" for text in texts))
    return path


def test_a_row_has_the_level_of_its_length(prose: Path) -> None:
    size = len(f"0 {WORDS}")
    plain = {
        "train": str(prose), "question_field": None, "answer_field": None,
        "eval_share": 0.0, "validation_share": 0.0,
    }  # fmt: skip
    none = jsonl.Config(**plain)
    assert {row.level for group in none.rows("train").groups for row in group} == {0}
    config = jsonl.Config(**plain, level_lengths=(size, 3 * size))
    found = {row.context: row.level for group in config.rows("train").groups for row in group}
    assert {len(text): level for text, level in found.items()} == {
        size: 1, 2 + 2 * len(WORDS): 2, 2 + 4 * len(WORDS): 3,
    }  # fmt: skip
    for level in (1, 2, 3):
        rows = config.rows("train", level=level)
        assert len(rows) == 5 and {group[0].level for group in rows.groups} == {level}
    with pytest.raises(UserError, match=r"no row of level 4 .* there are levels 1, 2, 3"):
        config.rows("train", level=4)


def test_gaps_and_questions_have_levels_by_length_too(prose: Path, tmp_path: Path) -> None:
    gaps = cloze.Config(train=str(prose), eval_share=0.0, validation_share=0.0, level_lengths=(60,))
    assert {group[0].level for group in gaps.rows("train").groups} == {1, 2}
    paragraphs = [
        {"context": WORDS * n, "qas": [{"id": str(n), "question": "Who?", "answers": [
            {"text": "Ada", "answer_start": 0}]}]}
        for n in (1, 3)
    ]  # fmt: skip
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "a", "paragraphs": paragraphs}]}))
    rows = squad.Config(
        train=str(path), eval_share=0.0, validation_share=0.0, level_lengths=(60,)
    ).rows("train")
    assert [group[0].level for group in rows.groups] == [1, 2]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"level_lengths": [300, 100]}, "level_lengths: [300, 100] do not rise"),
        ({"level_lengths": [100, 100]}, "level_lengths: [100, 100] do not rise"),
        ({"level_lengths": [0]}, "level_lengths.0: expected at least 1"),
        ({"level_lengths": [9], "level_field": "level"}, "level_lengths: level_field names"),
    ],
)
def test_lengths_that_make_no_levels_are_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build(jsonl.Config, {"train": "prose.jsonl", **keys})
    assert str(caught.value).startswith(said)
