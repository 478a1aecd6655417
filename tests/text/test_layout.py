"""The receiver's sequence on the host: segments, joint labels, what may not stand in a message."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.text.collate import Collate, Lengths, measure
from lw_jax.text.fit import length_remark
from lw_jax.text.layout import (
    answer_text,
    ask_text,
    asked_pair,
    check_labels,
    head_ids,
    message_text,
    source_head_ids,
    source_text,
    split_joint,
    target_text,
)
from lw_jax.text.layout_config import LayoutConfig
from tests.tiny.receiver import LAYOUT, groups, text_tokenizer


def whole(layout: LayoutConfig, example: Example) -> str:
    return (
        layout.primer
        + message_text(layout, example)
        + ask_text(layout, text_tokenizer(), example.question)
        + answer_text(example.answers[0])
    )


def test_segments_together_are_the_tokens_of_the_whole_text() -> None:
    tokenizer = text_tokenizer()
    for group in groups(20):
        for e in group:
            (asked,) = split_joint(LAYOUT, tokenizer, [(e.question, e.answers[0])])
            assert asked is not None
            ids = head_ids(LAYOUT, tokenizer) + tokenizer.encode(message_text(LAYOUT, e))
            ids += asked.ask + asked.answer
            assert ids == [tokenizer.bos_id, *tokenizer.encode(whole(LAYOUT, e)), tokenizer.eos_id]


def test_labels_end_in_eos_even_where_pad_is_eos() -> None:
    """Fault 21: padding is known by length, so an EOS label survives when pad = EOS = 0."""
    tokenizer = dataclasses.replace(text_tokenizer(), eos_id=0)
    some = groups(4)
    batch = Collate(LAYOUT, None, {"r": tokenizer}, measure(LAYOUT, None, {"r": tokenizer}, some))(
        some
    )
    lengths = batch["r/answer/lengths"]
    last = batch["r/answer/ids"][np.arange(len(lengths)), lengths - 1]
    assert (last == 0).all()
    assert (lengths >= 2).all()


def test_the_first_word_of_an_answer_comes_after_a_bare_space() -> None:
    """Qwen2's tokens of " 31" are a space, 3 and 1: metrics and objectives look at the 3."""
    tokenizer = {"r": text_tokenizer("qwen2")}
    some = [g for g in groups(40) if g[0].answers[0].isdigit()][:3]
    batch = Collate(LAYOUT, None, tokenizer, measure(LAYOUT, None, tokenizer, some))(some)
    examples = [e for g in some for e in g]
    answers = zip(examples, batch["r/answer/ids"], batch["r/answer/start"], strict=True)
    for example, ids, start in answers:
        said = [tokenizer["r"].backend.decode([i]).strip() for i in ids[: start + 1].tolist()]
        assert not any(said[:-1])
        assert said[-1] and example.answers[0].startswith(said[-1])
    assert batch["r/answer/start"].dtype == np.int32
    assert batch["r/answer/start"][0] == 1


def test_head_is_the_same_for_training_and_decoding() -> None:
    tokenizer = text_tokenizer()
    assert head_ids(LAYOUT, tokenizer)[0] == tokenizer.bos_id
    without = dataclasses.replace(tokenizer, bos_id=None)
    assert head_ids(LAYOUT, without) == head_ids(LAYOUT, tokenizer)[1:]


def test_anchor_literal_is_stripped_from_the_message() -> None:
    text = message_text(LAYOUT, Example("i", "c", "The sign says Answer: 42 to all.", "", ("42",)))
    assert "Answer:" not in text
    assert "42" in text


def test_anchor_with_a_trailing_space_is_refused() -> None:
    with pytest.raises(UserError, match="ends in white space"):
        LayoutConfig(anchor="\nAnswer: ")


def test_start_up_check_counts_and_notices_a_merging_anchor() -> None:
    examples = [e for g in groups(5) for e in g]
    assert check_labels(LAYOUT, text_tokenizer(), examples) == len(examples)
    # An anchor that ends inside a word: BPE merges across it, so no token ends where it ends.
    merging = LayoutConfig(question="", anchor="\nQuestio")
    odd = [Example("i", "c", "x", "", ("n",))]
    tokenizer = text_tokenizer()

    class Joined:
        """A tokenizer seen without the space that belongs to the answer."""

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer.backend, name)

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> object:
            return tokenizer.backend.encode_batch(
                [t.replace("Questio n", "Question") for t in texts],
                add_special_tokens=add_special_tokens,
            )

    with pytest.raises(UserError, match="merges the anchor"):
        check_labels(merging, dataclasses.replace(tokenizer, backend=Joined()), odd)  # type: ignore[arg-type]


def test_chat_layout_wraps_the_message() -> None:
    tokenizer = dataclasses.replace(text_tokenizer(), chat=("<user> ", " <assistant>"))
    layout = LayoutConfig(anchor_mode="chat")
    assert tokenizer.backend.decode(head_ids(layout, tokenizer)[1:]) == "<user> Context:"
    assert ask_text(layout, tokenizer, "Who?") == "\nQuestion: Who? <assistant>\nAnswer:"
    with pytest.raises(UserError, match="no chat template"):
        head_ids(layout, text_tokenizer())


def test_question_in_the_latent_is_not_asked_again() -> None:
    layout = LayoutConfig(question_in="latent")
    assert ask_text(layout, text_tokenizer(), "Who?") == "\nAnswer:"


def test_bos_after_the_message_begins_a_text_of_its_own() -> None:
    """As pretrained on: BOS, then text without a space before it; never two BOS, never none."""
    tokenizer = text_tokenizer()
    layout = LayoutConfig(primer="", bos="after_message")
    example = groups(1)[0][0]
    (asked,) = split_joint(layout, tokenizer, [asked_pair(layout, example)])
    assert asked is not None
    assert head_ids(layout, tokenizer) == []
    text = f"Question: {example.question}\nAnswer: {example.answers[0]}"
    assert asked.ask + asked.answer == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    assert source_head_ids(layout, tokenizer) == [
        tokenizer.bos_id
    ]  # the sender's BOS is always first
    with pytest.raises(UserError, match="no BOS token"):
        split_joint(
            layout, dataclasses.replace(tokenizer, bos_id=None), [asked_pair(layout, example)]
        )


@pytest.mark.parametrize("bos", ["start", "after_message"])
def test_the_question_is_read_back_before_the_answer(bos: str) -> None:
    tokenizer = text_tokenizer()
    layout = LayoutConfig(primer="", question_in="latent", target="question_answer", bos=bos)  # type: ignore[arg-type]
    examples = [
        groups(1)[0][0],
        Example("i", "c", "Ann has 3 pens. How many pens?", "", ("She has 3.\n#### 3",)),
    ]
    assert check_labels(layout, tokenizer, examples) == 2
    for e, read_back in zip(examples, (examples[0].question, examples[1].context), strict=True):
        assert target_text(layout, e) == f"{read_back}\nAnswer: {e.answers[0]}"
        assert read_back in message_text(layout, e)  # what is read back is in the message
        (asked,) = split_joint(layout, tokenizer, [asked_pair(layout, e)])
        assert asked is not None
        assert asked.ask == ([] if bos == "start" else [tokenizer.bos_id])
        back = tokenizer.backend.decode(asked.answer[:-1])
        assert back == (" " if bos == "start" else "") + target_text(layout, e)


def test_the_sender_may_read_another_primer_or_a_users_turn() -> None:
    tokenizer = dataclasses.replace(text_tokenizer(), chat=("<user> ", " <assistant>"))
    example = Example("i", "c", "Ann has 3 pens.", "", ("3",))
    layout = LayoutConfig(primer="Answer:", source_primer="Question:")
    assert tokenizer.backend.decode(source_head_ids(layout, tokenizer)[1:]) == "Question:"
    assert tokenizer.backend.decode(head_ids(layout, tokenizer)[1:]) == "Answer:"
    bare = dataclasses.replace(layout, source_primer="", encoder_use_chat_template=True)
    assert tokenizer.backend.decode(source_head_ids(bare, tokenizer)[1:]) == "<user> "
    assert (source_text(layout, example), source_text(bare, example)) == (
        " Ann has 3 pens.",
        "Ann has 3 pens.",
    )
    with pytest.raises(UserError, match="no chat template"):
        source_head_ids(bare, text_tokenizer())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"primer": "Answer: "}, "end the primer without it"),
        ({"target": "question_answer"}, "use question_in: latent"),
        (
            {"target": "question_answer", "question_in": "latent", "anchor_mode": "none"},
            "give an anchor",
        ),
        ({"bos": "after_message", "anchor_mode": "chat"}, "begins with BOS"),
    ],
)
def test_layouts_that_cannot_be(fields: dict[str, str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        LayoutConfig(**fields)  # type: ignore[arg-type]


def test_contexts_longer_than_max_tokens_are_counted_and_dropped() -> None:
    """To the token, though static lengths are multiples of eight."""
    some = [group[:1] for group in groups(40, level=4)]
    tokenizer = {"r": text_tokenizer()}
    lengths = sorted(len(text_tokenizer().encode(message_text(LAYOUT, g[0]))) for g in some)
    limit = next(n for n in lengths[10:] if n % 8)
    over = sum(n > limit for n in lengths)
    assert 0 < over < 40
    layout = dataclasses.replace(LAYOUT, max_tokens=limit)
    measured = measure(layout, None, tokenizer, some, limit)
    assert (measured.contexts, measured.long) == (40, over)
    assert (~Collate(layout, None, tokenizer, measured)(some)["valid"]).sum() == over
    assert measure(LAYOUT, None, tokenizer, some).long == 0


@pytest.mark.parametrize(
    ("long", "level", "words"),
    [
        (0, None, ""),
        (1, "ok", "1 of 10 contexts to train on are longer than layout.max_tokens=7, and are left"),
        (2, "warning", "2 of 10 contexts"),
        (
            10,
            "error",
            "10 of 10 contexts to train on are longer than layout.max_tokens=7: raise it",
        ),
    ],
)
def test_what_is_said_of_contexts_that_are_too_long(
    long: int, level: str | None, words: str
) -> None:
    said = length_remark(Lengths(contexts=10, long=long), 7, 10, "to train on")
    assert (None if said is None else said.level) == level
    assert said is None or said.text.startswith(words)
    some = length_remark(Lengths(contexts=10, long=long), 7, 5000, "to train on")
    if long == 2:
        assert some is not None
        assert some.text.startswith("about 20% of 5,000 (of 10 looked at 2) contexts to train on")


def test_rows_that_are_too_long_are_dropped_not_cut() -> None:
    some = groups(3, level=4)
    tokenizer = {"r": text_tokenizer()}
    sizes = dict(measure(LAYOUT, text_tokenizer(), tokenizer, some).sizes)
    full = Collate(LAYOUT, text_tokenizer(), tokenizer, Lengths(sizes))(some)
    assert full["valid"].all()
    sizes["r/context"] = 8
    short = Collate(LAYOUT, text_tokenizer(), tokenizer, Lengths(sizes))(some)
    assert not short["valid"].any()
    assert (short["r/context/lengths"] == 0).all()
