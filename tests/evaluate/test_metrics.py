"""Metrics against the official SQuAD script's behaviour and against hand-counted texts."""

from __future__ import annotations

import json
import re

import pytest

from lw_jax.evaluate.metrics import degenerate, entities, nouns, numbers, squad
from tests.real_data import real_file


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("The Cat.", ("cat",), 1, 1),  # case, article, full stop
        ("an  apple\n", ("Apple",), 1, 1),
        ("U.S.A", ("USA",), 1, 1),  # punctuation goes without a space
        ("twenty-one", ("twenty one",), 0, 0),
        ("theatre", ("atre",), 0, 0),  # an article is a whole word
        ("a red cat", ("red cat sat", "dog"), 0, 0.8),
        ("dog dog", ("dog",), 0, 2 / 3),  # repeats are a multiset
        ("red cat", ("blue", "red cat", "cat"), 1, 1),  # best of the answers
        ("", ("cat",), 0, 0),
        ("the", ("",), 1, 1),
        ("cat", (), 0, 0),
        ("", ("A",), 1, 1),  # an article alone is nothing, as the official script has it
    ],
)
def test_squad_scores(prediction: str, answers: tuple[str, ...], em: float, f1: float) -> None:
    assert squad.exact_match(prediction, answers) == em
    assert squad.f1(prediction, answers) == pytest.approx(f1)


def test_numbers_are_compared_by_value() -> None:
    text = "He paid $1,500 or 2.50 each, 1/16 of 20%, 5kg, in 3, 4 and 1000000."
    assert numbers.numbers(text) == ["1500", "2.5", "1", "16", "20", "5", "3", "4", "1000000"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a pack costs $.25 each, 3 for $.75", ["0.25", "3", "0.75"]),
        (".5", ["0.5"]),
        ("(.5), -.5, =.50", ["0.5", "0.5", "0.5"]),
        ("so ...42", ["42"]),
        ("No.5 and p.7", ["5", "7"]),
        ("done.5 left (see 2).5", ["5", "2", "5"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1,2,345", ["1", "2", "345"]),
        ("1,234,567 and 12,3456", ["1234567", "12", "3456"]),
        ("a,5", ["5"]),
        ("3.14.15", ["3.14", "15"]),
        ("1/16, 50% and 18.", ["1", "16", "50", "18"]),
    ],
)
def test_numbers_wherever_they_stand(text: str, found: list[str]) -> None:
    assert numbers.numbers(text) == found


@pytest.mark.parametrize(("name", "count"), [("gsm8k_dev", 9), ("gsm8k_train", 67)])
def test_no_number_of_a_gsm8k_question_is_lost(name: str, count: int) -> None:
    """Every digit belongs to one number, and those that begin with a point are whole."""
    begun = 0
    with real_file(f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            question = json.loads(line)["question"]
            found = numbers.numbers(question)
            pointed = re.findall(r"(?<![\w.])\.\d+", question)
            begun += len(pointed)
            assert not {numbers.canonical(n) for n in pointed} - set(found)
            # A number has the digits that stand together, but for commas and a point.
            runs = re.findall(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+", question)
            assert len(found) == len(runs)
    assert begun == count


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3*4=12\n#### 12", "12"),
        ("#### 1,200.00 dollars", "1200"),
        ("#### -10", "-10"),
        ("#### １８", "18"),
        ("#### −٣٫", "-3"),
        ("#### 1\u202f200\u00a0000", "1200000"),
        ("#### 1 200", "1"),
        ("#### 4 or rather #### 5", "4"),
        ("#### 18\n\nQuestion: 7 hats?\n#### 25", "18"),  # the first mark
        ("#### none\n#### 25", "25"),
        ("#### **18**\n#### 25", "18"),
        ("#### The answer is 18 of 20.\n\nQuestion: 3?\n#### 25", "18"),
        ("#### **-18**", "-18"),
        ("####\n18\n#### 25", "18"),
        ("#### .5", "0.5"),
        ("#### $.50", "0.5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### −5", "-5"),
        ("#### - 5", "-5"),
        ("#### +5", "5"),
        ("#### -0", "0"),
        ("####18", "18"),
        ("#### 70,000", "70000"),
        ("he has 3 and then 7 apples", "7"),
        ("so it is -$5", "-5"),
        ("that leaves −5.", "-5"),
        ("x = -.5", "-0.5"),
        ("10 -5", "5"),  # a difference
        ("15 - 20 = -5\n-5", "-5"),  # a line of its own
        ("that is 3\r\n  -$5", "-5"),
        ("it costs 10\n- 5 pens", "5"),  # an item
        ("#### -\\$18", "-18"),
        ("#### -₹5", "-5"),
        ("so it is -US$5", "-5"),
        ("#### -A$ 5", "-5"),
        ("#### **–5**", "-5"),
        ("#### \\(–5\\)", "-5"),
        ("#### in all – 5", "5"),
        ("pages 3-5", "5"),
        ("none", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert numbers.final_number(text) == number


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("72, altogether.", "72"),
        ("It costs $29.00.", "29"),
        ("70,000", "70000"),
        ("18.00", "18"),
        ("50%", "50"),
        ("-$5", "-5"),
        ("−5", "-5"),
        ("#### 18", "18.0"),
    ],
)
def test_final_numbers_that_are_right(said: str, gold: str) -> None:
    assert numbers.final_correct(said, f"so much\n#### {gold}") == 1
    assert numbers.final_correct(f"... #### {said}", f"so much\n#### {gold}") == 1


def test_gsm8k_scores_need_the_number_and_the_format() -> None:
    assert numbers.final_correct("it is 18", "... #### 18") == 1
    assert numbers.final_correct("#### 18", "... #### -18") == 0
    assert numbers.final_correct("", "... #### 18") == 0
    assert numbers.partial("4 pens. #### 9", "4 pens and 2 caps") == 1
    assert numbers.partial("4 pens", "4 pens and 2 caps") == 0
    assert numbers.partial("#### 9", "4 pens and 2 caps") == 0


def test_names_are_not_merely_sentence_initial() -> None:
    text = "Tina met Mr. Bow in Rome. Apples cost 3. Pat's cat. Pat ate. There he is. There!"
    assert entities.names(text) == {"Mr", "Bow", "Rome", "Pat"}


def test_entities_are_found_whole() -> None:
    gold = "Yesterday Ann gave Bob 12 pens and 12 caps for $1,500."
    assert entities.transferred(gold, "Annie and Bob's 112 pens: 1500") == {
        "numbers": (1, 2),
        "names": (1, 2),
        "entities": (2, 4),
        "nouns": (1, 2),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mark has a red garden with 12 large flowers.", {"garden", "flower"}),
        ("Ken put his berries into boxes of clay.", {"berry", "box", "clay"}),
        ("Tim's bike cost $5 on the 3-page list.", {"bike", "list"}),
        ("She will run, then he ate.", set()),
        ("The information was kept.", {"information"}),
        ("Two children each eat the other movies.", {"children", "movie"}),
        # A plural ends what a number opened, and nothing else.
        ("He sat in the games room.", {"room"}),
        ("He sold 3 games rooms have.", {"game"}),
        ("He saw 3 of the games room.", {"room"}),
        ("They prefer kindness.", {"kindness"}),  # by its ending, which no short word has
        ("They love unity.", set()),
        ("The dog barked loudly at noon.", {"dog", "noon"}),
        ("A cat and dog", {"cat"}),
        ("", set()),
    ],
)
def test_nouns_by_the_words_around_them(text: str, found: set[str]) -> None:
    assert nouns.nouns(text) == found


def test_identical_outputs_are_seen() -> None:
    assert degenerate.distinct(["a", "a ", "b", "a"]) == 0.5


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("no no no no", 1),
        ("the cat the cat the cat the cat", 1),
        ("........", 1),
        ("he sold 1000000 cars", 0),
        ("the cat saw the dog and the cow and the hen", 0),
        ("", 0),
    ],
)
def test_loops(text: str, loop: float) -> None:
    assert degenerate.loops(text) == loop


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("gas", "gas"),
        ("cats", "cat"),
        ("bus", "bus"),
        ("glass", "glass"),
        ("movies", "movie"),
        ("ties", "tie"),
        ("shoes", "shoe"),
        ("berries", "berry"),
        ("dishes", "dish"),
        ("boxes", "box"),
        ("horses", "horse"),
    ],
)
def test_nouns_in_the_singular(word: str, one: str) -> None:
    assert nouns.singular(word) == one


def test_how_long_a_word_is_whose_ending_makes_it_a_noun() -> None:
    """Six letters, without a word before it that says so."""
    assert nouns.nouns("sells unity") == set()
    assert nouns.nouns("sells purity") == {"purity"}
    assert nouns.nouns("a unity") == {"unity"}
    # After a number a plural ends the run, a singular does not.
    assert nouns.nouns("12 apples trees") == {"apple"}
    assert nouns.nouns("12 apple trees") == {"tree"}
    assert nouns.nouns("a red bike") == {"bike"} and nouns.nouns("a bike red") == {"bike"}
    assert nouns.nouns("bike red") == set()


def test_how_often_a_name_stands_that_begins_sentences_alone() -> None:
    assert entities.names("Al runs. Al stops.") == {"Al"}
    assert entities.names("Al runs.") == set()
    assert entities.names("Xu runs. Then Xu stops.") == {"Xu"}
    assert entities.names("Mint grows. Mint is green, and mint smells.") == set()
    assert entities.names("See X and Mr. Y and Dr. Wu.") == {"Mr", "Dr", "Wu"}
    found = entities.transferred("Ann and Bo have 3 pens and 4 cups.", "Bo has 4 cups, Ann none")
    assert found["numbers"] == (1, 2)
    assert found["names"] == (2, 2) if "Ann" in entities.names("Ann and Bo have 3 pens") else (1, 1)
    assert found["entities"] == tuple(map(sum, zip(found["numbers"], found["names"], strict=True)))


@pytest.mark.parametrize(
    ("text", "loop"), [("a" * 7, 0), ("a" * 8, 1), ("abababab", 1), ("ababab", 0), ("no " * 3, 0)]
)
def test_how_long_a_loop_is(text: str, loop: float) -> None:
    """Eight characters, four times in a row."""
    assert degenerate.loops(f"x{text}y" if text.strip() == text else text) == loop
