"""The pretraining mixture: its shares, its rewritten problems, and nothing held out in it."""

import json
import random
import re
from collections import Counter

import pytest

from lw_jax.data import gsm8k
from lw_jax.data.augment import excerpt, new_name, new_number, pieces, proper_names, rewrite
from lw_jax.data.words import open_split
from lw_jax.errors import UserError
from lw_jax.pretrain.mixture import ANSWER, REPEAT, Shares, mixture

PROBLEMS = [
    {
        "question": f"Gretchen has {n} hens and Tom has {n * 2}. On Monday Gretchen sells {n}. "
        f"She asks $1,{n:03} for each, and Tom $2.{n:02}. How much does Gretchen get?",
        "answer": f"Gretchen gets {n}*{n}=<<{n}*{n}={n * n}>>{n * n}.\nTom is not asked.\n#### {n}",
    }
    for n in range(11, 41)
] + [{"question": "so how does she sell on?", "answer": "the way she asks.\n#### 11"}]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in PROBLEMS))
    return gsm8k.Config(train=str(file), eval=None, validation_share=0.2)


def items(rows, count=400):
    return [task for i in range(count) for task in rows[i]]


def test_rows_are_pure_and_follow_the_seed(config):
    rows = [mixture(Shares(), "train", seed, problems=config) for seed in (0, 0, 1)]
    backwards = [rows[0][i] for i in reversed(range(50))][::-1]
    assert backwards == [rows[1][i] for i in range(50)]
    assert backwards != [rows[2][i] for i in range(50)]


def test_shares(config):
    rows = mixture(Shares(0.5, 0.1, 0.3, 0.1), "train", 0, problems=config)
    kinds = Counter()
    for i in range(2000):
        first = rows[i][0]
        source = "facts" if first.example.id.startswith("facts") else "gsm8k"
        kinds[source, first.anchor] += 1
    assert kinds["facts", ANSWER] == pytest.approx(1000, abs=100)
    assert kinds["facts", REPEAT] == pytest.approx(200, abs=60)
    assert kinds["gsm8k", REPEAT] == pytest.approx(600, abs=80)
    assert kinds["gsm8k", ANSWER] == pytest.approx(200, abs=60)


def test_a_share_of_zero_never_comes_and_needs_no_file():
    rows = mixture(Shares(1, 1, 0, 0), "train", 0)
    assert all(task.example.id.startswith("facts") for task in items(rows, 100))
    assert max(len(rows[i]) for i in range(100)) == 4


def test_repeating_answers_with_the_context(config):
    for task in items(mixture(Shares(), "train", 0, problems=config)):
        assert (task.anchor == REPEAT) == (task.example.answers[0] == task.example.context)
        if task.anchor == REPEAT:
            assert task.example.question == ""


def test_copied_problems_change_names_and_numbers_alike(config):
    rows = mixture(Shares(0, 0, 1, 0), "train", 0, problems=config)
    seen = set()
    for task in items(rows, 200):
        text = task.example.context
        whole = re.fullmatch(
            r"(\w+) has (\S+) hens and (\w+) has (\S+)\. On Monday (\w+) sells (\S+)\. "
            r"She asks \$(\S+) for each, and (\w+) \$(\S+)\. How much does (\w+) get\?",
            text,
        )
        if whole is None:  # an excerpt
            continue
        first, many, second, _, third, sold, _, fourth, _, fifth = whole.groups()
        assert first == third == fifth
        assert second == fourth
        assert many == sold
        seen |= {first, second, many}
    assert len(seen) > 100


def test_excerpts_are_whole_sentences():
    rng = random.Random(0)
    text = "One is 1.5 here. Two costs $2? Three! Four."
    found = {excerpt(text, rng) for _ in range(200)}
    assert text in found
    assert "Three!" in found
    assert all(part in text and part[0].isupper() and part[-1] in ".?!" for part in found)
    assert len(found) == 10


def test_solved_problems_keep_their_numbers_and_agree_on_names(config):
    rows = mixture(Shares(0, 0, 0, 1), "train", 0, problems=config)
    solutions = {int(record["answer"].split("#### ")[1]) for record in PROBLEMS}
    for task in items(rows, 100):
        example = task.example
        if example.context == PROBLEMS[-1]["question"]:
            continue
        name, number = re.match(r"(\w+) has (\d+) hens", example.context).groups()
        assert int(number) in solutions
        assert example.answers[0].startswith(f"{name} gets {number}*{number}=")
        assert example.answers[0].endswith(f"\n#### {number}")
        assert "<<" not in example.answers[0]


def test_validation_has_other_problems_and_words(config):
    def problems(split):
        rows = mixture(Shares(0, 0, 0, 1), split, 0, problems=config)
        return {re.search(r"#### (\d+)", t.example.answers[0]).group(1) for t in items(rows)}

    assert problems("train").isdisjoint(problems("validation"))
    rows = mixture(Shares(1, 0, 0, 0), "validation", 0)
    assert {open_split(task.example.answers[0]) for task in items(rows)} == {None, "validation"}


def test_names_are_found_and_pieces_join():
    text = "Tom met Anna in May. Hens like Tom. Anna has hens, 1,200.50 or 3% of 40"
    names = proper_names([text, "he likes hens", "the tom cat"])
    assert names == ("Anna",)
    cut = pieces(text, frozenset(names))
    assert "".join(piece.text for piece in cut) == text
    assert [p.text for p in cut if p.kind == "number"] == ["1,200.50", "3", "40"]
    assert [p.text for p in cut if p.kind == "name"] == ["Anna", "Anna"]


def test_rewriting_is_consistent():
    names = ("Anna", "Bert", "Carol", "Dimitri")
    cut = pieces("Anna has 12 and Bert 12, Anna 7", frozenset(names))
    for seed in range(50):
        new = rewrite(cut, {}, names, random.Random(seed), numbers=True)
        first, twelve, _, again, third, _ = re.fullmatch(
            r"(\w+) has (\S+) and (\w+) (\S+), (\w+) (\S+)", new
        ).groups()
        assert (first, twelve) == (third, again)
        kept = rewrite(cut, {}, names, random.Random(seed), numbers=False)
        assert re.findall(r"\d+", kept) == ["12", "12", "7"]


def test_new_numbers_keep_the_style():
    rng = random.Random(0)
    for old, style in [
        ("7", r"\d+|\d,\d{3}"),
        ("1,200", r"\d{1,3}(,\d{3})*"),
        ("3.50", r"[\d,]+\.\d\d"),
        ("123456", r"[\d,]+"),
    ]:
        made = [new_number(old, rng) for _ in range(300)]
        assert all(re.fullmatch(style, number) for number in made)
        assert len(set(made)) > 20
        assert not any(re.match(r"0\d", number) for number in made)


def test_new_names_are_never_held_out():
    rng = random.Random(0)
    held_out = ("Bagaf", "Dakelu", "Tovek", "Zilob")  # as real names: may not come back
    assert any(open_split(name) not in (None, "train") for name in held_out)
    made = {new_name(held_out, rng) for _ in range(3000)}
    assert {open_split(name) for name in made} <= {None, "train"}
    assert len(made) > 500


def test_missing_problems_and_empty_shares():
    with pytest.raises(UserError, match=r"^gsm8k_train: missing; "):
        mixture(Shares(), "train", 0)
    with pytest.raises(UserError, match=r"^facts: at least one share must be above 0"):
        Shares(0, 0, 0, 0)
