"""The rows of texts unlike those of training are what their generator makes, and are what they are
said to be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.out_of_template import rows as generator
from lw_jax.config.yaml_files import load
from lw_jax.data.fact_kinds import KINDS
from lw_jax.data.words import CLOSED, open_split

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks" / "out_of_template"


def held(name: str) -> list[dict[str, Any]]:
    lines = (HERE / "rows" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def in_templates(text: str) -> bool:
    """Whether every sentence of a text is one of training's."""
    forms = [
        re.sub(r"\\\{\w+\\\}", ".+", re.escape(statement)).removesuffix("\\.")
        for kind in KINDS
        for statement in kind.statements
    ]
    sentences = text.removesuffix(".").split(". ")
    return all(any(re.fullmatch(form, one) for form in forms) for one in sentences)


@pytest.mark.parametrize("name", ["in_template", "real_names", "statements", "this_person"])
def test_the_rows_are_what_the_generator_makes(name: str) -> None:
    assert held(name) == list(generator.rows(name))


def test_every_answer_stands_in_its_text() -> None:
    names = [*generator.SETS, "hand"]
    assert {path.stem for path in (HERE / "rows").glob("*.jsonl")} == set(names)
    for name in names:
        for row in held(name):
            answers = row.get("answers", [row.get("answer")])
            assert any(answer in row["context"] for answer in answers), row


def test_a_set_leaves_training_in_its_own_way_alone() -> None:
    for name in ("in_template", "sentences_12", "by_person", "new_words", "real_names"):
        assert all(in_templates(row["context"]) for row in held(name)), name
    assert all("This person" in row["context"] for row in held("this_person"))
    for name in ("with_english", "statements", "hand"):
        assert not any(in_templates(row["context"]) for row in held(name)), name
    known = {word for words in CLOSED.values() for word in words}
    for words in generator.NEW_CLOSED.values():
        assert not known & set(words)
    for words in generator.REAL.values():
        assert all(open_split(word) is None for word in words)


@pytest.mark.parametrize("bridge", ["facts", "facts_any_ratio"])
def test_the_config_has_every_set(bridge: str) -> None:
    stages = {name: s for name, s in load(HERE / f"{bridge}.yaml")["stages"].items() if s}
    assert set(stages) == {*generator.SETS, "hand"}
    for name, stage in stages.items():
        evaluate = stage["evaluate"]
        assert evaluate["data"]["jsonl"]["eval"].endswith(f"/{name}.jsonl")
        assert evaluate["init_from"] == f"zoo/bridges/{bridge}"
