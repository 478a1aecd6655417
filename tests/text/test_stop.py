"""Where answers end: by the task, by the config, in a tokenizer's tokens, in text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from lw_jax.data import classification, facts, gsm8k, hotpotqa, jsonl, squad, topics
from lw_jax.data.base import DataSet
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate.config import DecodeConfig, EvaluateConfig, RelayConfig
from lw_jax.models.config import ModelConfig
from lw_jax.models.spec import open_model
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import Stop, cut, stop_of, stop_strings, unwritable
from lw_jax.text.tokenizer import Tokenizer

ZOO = Path(__file__).parents[2] / "zoo"
WORDS = ["<s>", "</s>", "ĠCat", "holicism", "Ċ", ".Ċ", "ĊĊ", "This", "EN", "D", "ĠĊ", "Ġ", "ĊThis"]


def made() -> Tokenizer:
    """A byte-level tokenizer with line breaks alone, twice, and after other characters."""
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<s>"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>"), AddedToken("<|im_end|>")])
    return Tokenizer("made", backend, None, 1)


def ids(*words: str) -> list[int]:
    return [made().backend.token_to_id(word) for word in words]


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("Catholicism\nThis question directly", ["\n"], "Catholicism"),
        ("a\n\nb", ["\n"], "a"),
        ("\nb", ["\n"], ""),
        ("a", ["\n"], "a"),
        ("", ["\n"], ""),
        ("a\nb", [], "a\nb"),
        ("18 END 20\nx", ["\n", "END"], "18 "),  # whichever comes first
        ("18\n20 END", ["END", "\n"], "18"),
    ],
)
def test_a_text_ends_at_its_first_stop(text: str, stops: list[str], left: str) -> None:
    assert cut(text, stops) == left


def test_tokens_that_hold_a_stop() -> None:
    found = stop_of(made(), ("\n",))
    assert found.ids == tuple(sorted(ids("Ċ", ".Ċ", "ĊĊ", "ĠĊ", "ĊThis")))
    assert found.clean == tuple(sorted(ids("Ċ", "ĊĊ", "ĠĊ", "ĊThis")))
    assert stop_of(made(), ()) == Stop()
    assert stop_of(made(), ("<|im_end|>",)).ids == tuple(ids("<|im_end|>"))
    assert stop_of(made(), ("END",)).ids == ()  # no token holds it: the text does


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-qwen"])
def test_the_models_that_ship_have_a_line_break(name: str) -> None:
    tokenizer = open_model("x", ModelConfig(path=str(ZOO / name))).tokenizer
    found = stop_of(tokenizer, ("\n",))
    assert found.ids
    assert all("\n" in tokenizer.backend.decode([i]) for i in found.ids)
    size = tokenizer.backend.get_vocab_size(with_added_tokens=True)
    others = set(range(size)) - set(found.ids)
    assert not any("\n" in tokenizer.backend.decode([i]) for i in others)


@pytest.mark.parametrize(
    ("words", "length", "stopped", "stops", "said"),
    [
        (["ĠCat", "holicism", "Ċ", "This"], 2, True, ("\n",), "Catholicism"),
        (["ĠCat", "holicism", ".Ċ", "This"], 2, True, ("\n",), "Catholicism."),
        (["ĠCat", "holicism", "ĊThis", "This"], 2, True, ("\n",), "Catholicism"),
        (["ĠCat", "holicism", "</s>"], 2, False, ("\n",), "Catholicism"),
        (["ĠCat", "<|im_end|>", "This"], 1, True, ("<|im_end|>",), "Cat"),
        (["ĠCat", "EN", "D", "This"], 4, False, ("END",), "Cat"),
        (["Ċ", "This"], 0, True, ("\n",), ""),
        (["ĠCat", "Ċ", "This"], 3, False, (), "Cat\nThis"),
    ],
)
def test_what_was_written_is_shown_up_to_the_stop(
    words: list[str], length: int, stopped: bool, stops: tuple[str, ...], said: str
) -> None:
    tokenizer = made()
    stop = stop_of(tokenizer, stops)
    assert stop.text(tokenizer, ids(*words), length, stopped) == said


LINE = ("\n",)
LABELS = ("good", "bad")


@pytest.mark.parametrize(
    ("data", "stop"),
    [
        (facts.Config(), LINE),
        (facts.Config(task="readback"), ()),
        (facts.Config(task="continue"), ()),
        (gsm8k.Config(), ()),
        (gsm8k.Config(task="solve"), ()),
        (gsm8k.Config(task="continue"), ()),
        (gsm8k.Config(task="final"), LINE),
        (jsonl.Config(train="x"), LINE),
        (jsonl.Config(train="x", answer_field=None), ()),
        (jsonl.Config(train="x", ends_in_number=True), ()),
        (squad.Config(), LINE),
        (hotpotqa.Config(), LINE),
        (classification.Config(train="x", labels=LABELS), LINE),
        (topics.Config(), LINE),
    ],
)
def test_every_task_says_where_its_answers_end(data: DataSet, stop: tuple[str, ...]) -> None:
    assert stop_strings(None, data, LayoutConfig()) == stop
    assert stop_strings(["END"], data, LayoutConfig()) == ("END",)
    assert stop_strings([], data, LayoutConfig()) == ()
    both = LayoutConfig(target="question_answer", question_in="latent")
    assert stop_strings(None, data, both) == ()  # the anchor between the two has a line break


@pytest.mark.parametrize("stop", ["", " ", "  "])
def test_a_stop_that_every_answer_begins_with_is_refused(stop: str) -> None:
    said = r"^stop: .* before it begins" if stop else r"^stop\.\d: expected some text"
    with pytest.raises(UserError, match=said):
        DecodeConfig(stop=("\n", stop))
    with pytest.raises(UserError, match=said):
        RelayConfig(stop=(stop,))


def test_by_default_the_task_decides() -> None:
    assert EvaluateConfig().decode.stop is None
    assert DecodeConfig(stop=("\n", " END")).stop == ("\n", " END")


def test_gold_answers_that_cannot_be_written_are_counted() -> None:
    tokenizer = open_model("x", ModelConfig(path=str(ZOO / "tiny-mistral"))).tokenizer

    def example(*answers: str) -> Example:
        return Example("q", "c", "text", "Who?", answers)

    long = "a very long answer indeed"
    rows = [
        example("dog"),
        example(long),
        example(long, "dog"),
        example("a\nb"),
        example("a\nb", "a"),
    ]
    most = len(tokenizer.encode(" " + long)) - 1
    found = unwritable(LayoutConfig(), tokenizer, rows, most, LINE)
    assert (found.long, found.stopped, found.rows, found.tokens) == (1, 1, 5, most + 1)
    said = found.words("reader", most, LINE)
    assert f"1 of 5 gold answers are longer than decode.max_new_tokens {most}" in said
    assert f"up to {most + 1} tokens of reader" in said
    assert r"1 of 5 gold answers hold a stop of '\n'" in said
    every = unwritable(LayoutConfig(), tokenizer, rows, most + 1, ())
    assert every.count == 0
    assert not every.words("reader", most, ())
