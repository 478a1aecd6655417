"""Rows that are made anew each time they are drawn: gaps in prose, passages with other names."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest

from lw_jax.data import cloze, squad
from lw_jax.data.example import Example
from lw_jax.data.stream import Stream
from lw_jax.data.swap import new_number, swapped

TEXT = (
    "In 1897 the chemist Marie Curie moved to Paris with her sister Bronia, who had worked there "
    "for 12 years. Later Henri Becquerel showed them a salt that had darkened a plate, and they "
    "bought 3,500 kilograms of ore from Bohemia."
)


def test_a_gap_is_filled_by_what_stood_there() -> None:
    plain = " ".join(TEXT.split())
    seen = set()
    for seed in range(300):
        made = cloze.question(TEXT, "____", 0.0, random.Random(seed))
        assert made is not None
        asked, answer = made
        assert asked.count("____") == 1
        assert asked.replace("____", answer) in plain
        assert answer[0].isupper() or answer[0].isdigit()
        seen.add(answer)
    assert {"Marie Curie", "Henri Becquerel", "3,500", "12"} <= seen
    anywhere = [cloze.question(TEXT, "____", 1.0, random.Random(seed)) for seed in range(300)]
    assert "who" in {made[1] for made in anywhere if made is not None}
    assert cloze.question("Too short.", "____", 0.1, random.Random(0)) is None


def test_texts_have_other_gaps_each_time(tmp_path: Path) -> None:
    file = tmp_path / "prose.jsonl"
    texts = [f"{TEXT} Number {i} of the series." for i in range(40)]
    rows = [{"context": text, "level": 3} for text in [*texts, "Short."]]
    file.write_text("\n".join(map(json.dumps, rows)))
    read = cloze.Config(train=str(file), level_field="level").rows("train", level=3)
    assert len(read.malformed) <= 1
    made: Stream[Example, list[tuple[Example, ...]]] = Stream(
        read, lambda groups: groups, batch_size=8, questions=4
    )
    first, again = made.batch(0), pickle.loads(pickle.dumps(read)).drawn(0, 4, random.Random(1))
    assert [len(group) for group in first] == [4] * 8
    assert made.batch(0) == first
    for group in (*first, again):
        assert len({(e.question, e.answers) for e in group}) == 4
        assert {e.context for e in group} <= {*texts}
    epochs = len(read) // 8
    assert made.batch(epochs) != first  # the same texts once more


def test_names_and_numbers_are_swapped_alike_everywhere() -> None:
    group = (
        Example("a", "c", TEXT, "Where did Marie Curie move in 1897?", ("Paris",)),
        Example("b", "c", TEXT, "Who had worked there for 12 years?", ("Bronia",)),
        Example("d", "c", TEXT, "How much ore?", ("3,500 kilograms",)),
    )
    names = frozenset({"Marie", "Curie", "Paris", "Bronia", "Henri", "Becquerel", "Bohemia"})
    pool = ("Ada", "Lovelace", "London", "Kiel")
    changed = 0
    for seed in range(50):
        made = swapped(group, names, pool, random.Random(seed))
        for one, old in zip(made, group, strict=True):
            assert one.answers[0] in one.context
            assert one.context == made[0].context
            assert (one.id, one.context_id) == (old.id, old.context_id)
        changed += made[0].answers != group[0].answers
        assert "chemist" in made[0].context
    assert 25 < changed < 46


@pytest.mark.parametrize(("old", "digits"), [("1897", 4), ("3,500", 5), ("12", 2), ("7", 1)])
def test_a_number_keeps_its_form(old: str, digits: int) -> None:
    for seed in range(50):
        made = new_number(old, random.Random(seed))
        assert len(made) == digits
        assert [c for c in made if not c.isdigit()] == [c for c in old if not c.isdigit()]
        assert made[0] != "0"
    if old == "1897":
        assert all(1700 <= int(new_number(old, random.Random(s))) < 2000 for s in range(50))


def test_squad_swaps_the_passages_of_training_alone(tmp_path: Path) -> None:
    file = tmp_path / "qa.json"
    question = {"question": "Where to?", "id": "q", "answers": [{"text": "Paris"}]}
    data = [
        {"title": f"t{i}", "paragraphs": [{"context": f"{TEXT} {i}", "qas": [question]}]}
        for i in range(60)
    ]
    file.write_text(json.dumps({"data": data}))
    config = squad.Config(train=str(file), eval=None, swap=0.5)
    rows = config.rows("train")
    made: Stream[Example, list[tuple[Example, ...]]] = Stream(
        rows, lambda groups: groups, batch_size=32, questions=2
    )
    drawn = [group[0] for step in range(4) for group in made.batch(step)]
    others = sum(TEXT not in one.context for one in drawn)
    assert 40 < others < 88
    assert all(one.answers[0] in one.context for one in drawn)
    assert not hasattr(config.rows("eval"), "drawn")
