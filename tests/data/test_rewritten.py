"""Rewritten training texts: without end, pure, of the training split alone, nothing held out."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from lw_jax.data import gsm8k
from lw_jax.data.overlap import RunIndex
from lw_jax.data.rewritten import Augment
from lw_jax.data.words import open_split
from lw_jax.errors import UserError


def problem(n):
    question = (
        f"Gretchen has {n} hens and Tom has {2 * n} of them. She sells all her hens at the market. "
        f"How much does Gretchen get, if she asks ${n} for each?"
    )
    return {"question": question, "answer": f"{n} x {n} = {n * n}\n#### {n * n}"}


@pytest.fixture
def config(tmp_path):
    files = {"train": range(11, 41), "eval": range(60, 65)}
    for name, numbers in files.items():
        lines = [json.dumps(problem(n)) + "\n" for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    train, held_out = (str(tmp_path / f"{name}.jsonl") for name in files)
    augment = Augment(rewritten=0.8, excerpts=0.25)
    return gsm8k.Config(
        train=train, eval=held_out, validation_share=0.2, decontaminate=0, augment=augment
    )


def texts(rows, n=400):
    return [rows[i][0].context for i in range(n)]


def test_share_of_rewritten_texts_and_of_excerpts(config):
    rows = config.rows("train")
    own = {problem(n)["question"] for n in range(11, 41)}
    found = texts(rows, 1000)
    changed = [text for text in found if text not in own]
    assert len(rows) > 10**6
    assert len(changed) == pytest.approx(800, abs=60)
    assert len(set(changed)) > 700
    # one excerpt in nine of three sentences is all of them
    whole = sum(text.count(".") + text.count("?") == 3 for text in changed)
    assert whole / len(changed) == pytest.approx(0.75 + 0.25 * (1 / 9), abs=0.05)


def test_a_rewritten_text_is_read_back_as_it_stands(config):
    rows = config.rows("train")
    for i in range(200):
        (example,) = rows[i]
        assert example.answers == (example.context,)
    ids = Counter(rows[i][0].context_id for i in range(200) if "rewritten" in rows[i][0].id)
    assert set(ids.values()) == {1}


def test_rows_are_pure_and_follow_the_seed(config):
    rows = [config.rows("train", seed) for seed in (0, 0, 1)]
    backwards = [rows[0][i] for i in reversed(range(50))][::-1]
    assert backwards == [rows[1][i] for i in range(50)]
    assert backwards != [rows[2][i] for i in range(50)]


@pytest.mark.parametrize("split", ["validation", "eval"])
def test_other_splits_stay_as_they_are(config, split):
    plain = replace(config, augment=Augment()).rows(split)
    assert config.rows(split).groups == plain.groups


def test_no_held_out_word_and_no_held_out_run(config):
    rows = replace(config, augment=Augment(rewritten=1.0)).rows("train")
    for text in texts(rows):
        assert {open_split(word) for word in text.replace(".", "").split()} <= {None, "train"}
    held_out = RunIndex(["has 45 of them"], 4)
    assert any(held_out.shared(text) for text in texts(rows, 1000))
    rows.held_out = held_out
    assert not any(held_out.shared(text) for text in texts(rows, 1000))


def test_where_every_rewriting_has_a_held_out_run_the_text_stays(config):
    rows = replace(config, augment=Augment(rewritten=1.0)).rows("train")
    rows.held_out = RunIndex(["sells all her hens at the market"], 7)
    assert set(texts(rows, 20)) <= {problem(n)["question"] for n in range(11, 41)}


def test_only_what_is_read_back_can_be_rewritten(config):
    with pytest.raises(UserError, match=r"augment\.rewritten: only for task readback"):
        replace(config, task="solve")
