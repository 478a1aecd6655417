"""No held-out word and no evaluation row is in any training stream; and the check would see one."""

import importlib
import json
from dataclasses import replace

import pytest

from lw_jax.data import facts, gsm8k, leak
from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.data.source import ListRows
from lw_jax.pretrain.mixture import Shares, mixture
from tests.real_data import real_file

EVAL_TEXT = "Weng earns 12 dollars an hour and pays 3 of them for the bus that takes her to work."


def example(context, name="train/1", question="", answers=("x",)):
    return Example(name, name, context, question, answers)


def as_rows(*texts):
    return ListRows([(example(text, f"train/{n}"),) for n, text in enumerate(texts)], [])


def held_out_word():
    rows = FactsRows("eval", 0, 6, 100)
    return next(e.answers[0] for e in rows[0] if facts.answer_type(e) == "open")


@pytest.mark.parametrize("levels", [(1,), (6,), (1, 2, 4, 6)])
@pytest.mark.parametrize("task", ["answer", "readback"])
def test_training_facts_hold_no_held_out_word(levels, task):
    cfg = facts.Config(levels=levels, task=task)
    for seed in (0, 1):
        assert leak.find(cfg.rows("train", seed), cfg.rows("eval"), 200) == []


def test_pretraining_without_problems_holds_no_held_out_word():
    evaluation = facts.Config().rows("eval")
    assert leak.find(mixture(Shares(1, 1, 0, 0), "train", 0), evaluation, 400) == []


def test_evaluation_facts_are_seen_as_leaks():
    rows = facts.Config().rows("eval")
    found = leak.find(rows, rows, 3)
    assert {"word", "row"} == {one.kind for one in found}


@pytest.mark.parametrize("place", ["context", "question", "answer"])
def test_a_held_out_word_is_found_wherever_it_stands(place):
    word = held_out_word()
    texts = {"context": "Nothing.", "question": "", "answer": "x"} | {place: f"Is it {word}?"}
    row = example(texts["context"], question=texts["question"], answers=(texts["answer"],))
    (found,) = leak.find(ListRows([(row,)], []), None)
    assert found == leak.Leak("word", "train/1", word)
    assert str(found) == f"train/1: held-out word {word!r}"


def test_rows_and_near_copies_are_found():
    evaluation = ListRows([(example(EVAL_TEXT, "eval/1"),)], [])
    near = EVAL_TEXT.replace("Weng", "Anna").replace("to work", "home")
    training = as_rows("A text of its own.", EVAL_TEXT.upper(), f"So: {near}", EVAL_TEXT[:40])
    found = leak.find(training, evaluation)
    assert [(one.kind, one.where) for one in found] == [("row", "train/1"), ("run", "train/2")]
    assert len(found[1].what.split()) == 13


def test_gsm8k_and_the_mixture_where_the_files_are():
    """The shipped models' own training stream, against the dev file and held-out words."""
    train, dev = real_file("gsm8k_train.jsonl"), real_file("gsm8k_dev.jsonl")
    cfg = gsm8k.Config(train=str(train), eval=str(dev))
    evaluation = cfg.rows("eval")
    assert leak.find(cfg.rows("train"), evaluation) == []
    assert leak.find(mixture(Shares(), "train", 0, problems=cfg), evaluation, 2000) == []
    undone = leak.find(replace(cfg, decontaminate=0).rows("train"), evaluation)
    assert [one.kind for one in undone] == ["run", "run"]


def asked(*rows):
    return ListRows([(example(text, name, question),) for text, name, question in rows], [])


def test_evaluation_rows_in_training_rows_are_counted():
    evaluation = asked(
        ("The goat  is red.", "e/1", "Which?"), ("A house.", "e/2", "Where?"), ("New.", "e/3", "?")
    )
    training = asked(
        ("Another.", "t/1", "Which?"),
        ("the goat is\r\nRED.", "t/2", "which?"),
        ("A house.", "t/3", "Who?"),
        ("\u65b0\u3057\u3044", "t/4", "?"),  # no letter of the Latin alphabet: no text is empty
    )
    found = leak.overlap(training, evaluation)
    assert (found.contexts, found.of, found.asked, found.inside) == (2, 3, 1, 0)
    assert found.where == "t/2"
    assert str(found) == (
        "2 of 3 contexts, 1 with the same question; 'The goat  is red.' is row t/2"
    )
    assert leak.overlap(training, asked(("\u53e4\u3044", "e/1", "?"))) is None
    assert leak.overlap(asked(("5 - 3", "t", "")), asked(("5 + 3", "e", ""))) is None


@pytest.mark.parametrize(
    "changed",
    [
        "Nadia keeps 12 goats in barn 7!",
        "\u201cNadia keeps 12 goats, in barn 7\u201d",
        "Nadia kee\u200bps 12 goats in barn 7.",
        "\ufeffNadia keeps 12 go\u00adats in barn 7.",
        "Na\u2060dia keeps\u00a012 goats in barn 7.",
    ],
)
def test_a_text_with_other_punctuation_or_unseen_characters_is_the_same(changed):
    text = "Nadia keeps 12 goats in barn 7."
    found = leak.overlap(asked((text, "t", "?")), asked((changed, "e", "?")))
    assert found is not None and (found.contexts, found.inside) == (1, 0)
    other = text.replace("12", "13")
    assert leak.overlap(asked((other, "t", "?")), asked((changed, "e", "?"))) is None


def test_overlap_of_generated_rows_is_looked_for_in_a_sample():
    cfg = facts.Config()
    assert leak.overlap(cfg.rows("train"), cfg.rows("eval")) is None
    own = leak.overlap(cfg.rows("eval"), cfg.rows("eval"))
    assert own.contexts == own.of == leak.GENERATED == 256
    row = cfg.rows("train")[3][0]
    assert leak.overlap(cfg.rows("train"), asked((row.context, "e", "Who?"))).contexts == 1


LONG = "The goat of the mill is red, and it has eaten 4 hats."


def test_evaluation_rows_inside_longer_training_rows_are_found():
    """Whole words in a row, whatever stands around them; short texts stand anywhere."""
    training = asked(
        (
            "Title\nSee: \u201cthe goat of the mill is  RED and it has eaten 4 hats\u201d.",
            "t/1",
            "?",
        ),
        ("The goat of the mill is red, and it has eaten 4 hatstands.", "t/2", "?"),
        ("The goat of the mill is red. It has eaten.", "t/3", "?"),
        ("A house. \u65b0\u3057\u3044", "t/4", "?"),
    )
    other = asked((LONG, "e/1", "Which?"), ("A house", "e/2", "?"), ("So red a goat!", "e/3", "?"))
    found = leak.overlap(training, other)
    assert (found.contexts, found.asked, found.inside, found.of) == (0, 0, 1, 3)
    assert str(found) == f"1 of 3 contexts; {LONG!r} is a part of row t/1"
    both = leak.overlap(asked((f"No. {LONG}", "t/1", ""), ("A house", "t/2", "?")), other)
    assert str(both).startswith("1 of 3 contexts, 1 with the same question, 1 more as a part of a ")
    again = leak.overlap(asked((LONG, "t/1", "?"), (f"So {LONG}", "t/2", "?")), other)
    assert (again.contexts, again.inside, again.holding) == (1, 0, 0)  # counted once


def test_evaluation_rows_that_hold_a_whole_training_row_are_found():
    """Sentences of a passage that were read back in training, say."""
    passage = f"The mill is old. {LONG} Nobody minds."
    evaluation = asked((passage, "e/1", "?"), ("A house in a wood.", "e/2", "?"))
    training = asked(
        ("Nobody.", "t/1", "?"),
        (LONG.removesuffix("hats.") + "hat.", "t/2", "?"),
        (LONG.upper(), "t/3", "?"),
    )
    found = leak.overlap(training, evaluation)
    assert (found.contexts, found.inside, found.holding, found.of) == (0, 0, 1, 2)
    assert found.how == "hold the whole text of"
    assert str(found).startswith("1 of 2 contexts; ") and str(found).endswith(" holds row t/3")
    both = leak.overlap(asked((LONG, "t/4", "?"), (f"So: {passage}", "t/5", "?")), evaluation)
    assert (both.contexts, both.inside, both.holding) == (0, 1, 0)  # counted once
    more = asked((passage, "e/1", "?"), (LONG, "e/2", "?"))
    mixed = leak.overlap(asked((LONG, "t/1", "?")), more)
    assert (mixed.contexts, mixed.holding) == (1, 1)
    assert ", 1 more with a whole one inside; " in str(mixed)


def rows_of(kind, text):
    """A row of a data set with this text."""
    return {
        "jsonl": {"context": text, "question": "What?", "answer": "4"},
        "squad": {"context": text, "question": "What?", "answers": {"text": ["hats"]}},
        "hotpotqa": {
            "context": [["T", [text]]],
            "supporting_facts": [["T", 0]],
            "question": "What?",
            "answer": "4",
        },
        "gsm8k": {"question": text, "answer": "4\n#### 4"},
        "classification": {"text": text, "label": 1},
    }[kind]


@pytest.mark.parametrize("kind", ["jsonl", "squad", "hotpotqa", "gsm8k", "classification"])
def test_every_data_set_is_looked_through_for_parts(kind, tmp_path):
    """GSM8K's runs of 13 words aside, which are left out of its training rows."""
    for name, text in (("train", f"T: {LONG} So it is."), ("eval", LONG)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(rows_of(kind, text)) + "\n")
    module = importlib.import_module(f"lw_jax.data.{kind}")
    own = {"gsm8k": {"decontaminate": 0}, "classification": {"labels": ("no", "yes")}}.get(kind, {})
    cfg = module.Config(str(tmp_path / "train.jsonl"), str(tmp_path / "eval.jsonl"), **own)
    found = leak.overlap(cfg.rows("train", 0), cfg.rows("eval", 0))
    assert (found.contexts, found.inside) == (0, 1)


def test_what_touches_an_evaluation_is_found_either_way_round() -> None:
    held = "The council of Denver has counted its homeless people each winter since the plan began."
    parts = {
        "the same": f"  {held.upper()}",
        "holds it": f"Trams run. {held} Others do not.",
        "stands in it": "has counted its homeless people, each winter since",
        "its end": "homeless people each winter since the plan began",
        "too short to say": "each winter since",
        "its beginning alone": "The council of Denver has counted its trams, never at night.",
        "words of it": "council of homeless people Denver winter plan since has began",
        "its last words, more": "each winter since the plan began, and in every summer too",
    }
    places = leak.touching(as_rows(*parts.values()).groups, as_rows(held).groups)
    found = [name for place, name in enumerate(parts) if place in places]
    assert found == ["the same", "holds it", "stands in it", "its end"]


def test_how_short_a_text_is_that_stands_anywhere() -> None:
    """Of 32 letters and digits it is looked for inside others, both ways round; of 31 it is not."""
    assert leak.LEAST == 32
    just = "goats of the mill eat their hats now 123"
    less = just.removesuffix("3")
    assert [sum(map(str.isalnum, text)) for text in (just, less)] == [32, 31]
    for text, found in ((just, {0}), (less, set())):
        whole = f"So it is: {text}, and they are red."
        assert leak.touching(as_rows(text).groups, as_rows(whole).groups) == found
        assert leak.touching(as_rows(whole).groups, as_rows(text).groups) == found
        assert (leak.overlap(as_rows(whole), as_rows(text)) is not None) == bool(found)


@pytest.mark.parametrize("begin", [0, 3])
def test_texts_that_begin_alike_are_told_apart_by_what_follows(begin: int) -> None:
    """A part of three words, of four and of more, at the start and at the end of what holds it."""
    words = "internationalisation responsibilities notwithstanding misunderstanding ends".split()
    for size in (3, 4, 5):
        part = " ".join(words[:size])
        whole = " ".join(["x"] * begin + words[:size])
        assert leak.touching(as_rows(part).groups, as_rows(whole).groups) == {0}
        other = " ".join(["x"] * begin + [*words[: size - 1], "else"])
        assert leak.touching(as_rows(part).groups, as_rows(other).groups) == set()


def test_of_many_contexts_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many as are said, spread evenly over all."""
    rows = as_rows(*(f"Text {i}." for i in range(10)))
    for most, places in ((10, range(10)), (9, range(0, 10, 2)), (4, (0, 3, 6, 9)), (1, (0,))):
        monkeypatch.setattr(leak, "LOOKED_AT", most)
        held = [f"Text {i}." for i in places]
        assert [group[0].context for group in leak._some(rows)] == held
