"""A file of rows is read once for all levels, splits and tasks that are of it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lw_jax.data import cloze, files, jsonl, records, squad

FORMS = {
    "jsonl": jsonl.Config(train="rows.jsonl", level_field="level", eval_share=0.3),
    "by length": jsonl.Config(train="rows.jsonl", level_lengths=(45, 52), eval_share=0.3),
    "cloze": cloze.Config(train="rows.jsonl", level_field="level", eval_share=0.3),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_levels_and_splits_are_those_of_files_read_anew(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{'Very ' * (i % 5)}old Tower {i // 2} of Ely stands by the river" for i in range(60)]
    rows: list[Any] = [
        {"context": text, "question": "?", "answer": "x", "level": 1 + i % 3, "id": i % 50}
        for i, text in enumerate(texts)
    ]
    short = rows[0] | {"context": "Far too short", "id": "short"}
    rows[7:7] = [{"context": ""}, 3, short]
    rows.append(rows[0] | {"context": "Just long enough now", "id": "last"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + rows[:5]) + "{\n")
    os.utime(path, (time.time() - 60,) * 2)
    read, whole = [], records._file
    monkeypatch.setattr(records, "_file", lambda name: read.append(name) or whole(name))

    def all_rows() -> list[Any]:
        asked = [(split, level) for split in ("train", "eval") for level in (None, 1, 2, 3)]
        found = [FORMS[form].rows(split, 1, level) for split, level in asked]
        return [(one.groups, one.malformed, one.account) for one in found]

    held = all_rows()
    assert len(read) == 1
    monkeypatch.setattr(files, "SMALL", 3)
    assert held == all_rows()
    assert len(read) == 9
    assert len(held[0][1]) == (4 if form == "cloze" else 3) and held[0][2].twice


def test_names_are_swapped_in_the_rows_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"id": "a", "question": "Who?", "answers": [{"text": "Ada"}]}]
    article = {"title": "T", "paragraphs": [{"context": "Here came Ada again.", "qas": asked}]}
    path, read, whole = tmp_path / "qa.json", [], records._file
    path.write_text(json.dumps({"data": [article]}))
    os.utime(path, (time.time() - 60,) * 2)
    monkeypatch.setattr(records, "_file", lambda name: read.append(name) or whole(name))
    plain = squad.Config(train=str(path), eval=None, eval_share=0.0, validation_share=0.0)
    some = replace(plain, swap=0.5)
    assert plain.rows("train").groups == some.rows("train").groups
    assert len(read) == 1
    other = replace(plain, unanswerable="none")
    assert other.rows("train").groups == plain.rows("train").groups
    assert len(read) == 2
