"""The receiver's sequence on the host: segments, joint labels, what may not stand in a message."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lw_jax.config.layout import LayoutConfig
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.receiver.collate import Collate, Lengths, measure
from lw_jax.receiver.layout import (
    answer_text,
    ask_text,
    check_labels,
    head_ids,
    message_text,
    split_joint,
)
from tests.receiver.worlds import LAYOUT, groups, speaker


def whole(layout: LayoutConfig, example: Example) -> str:
    return (
        layout.primer
        + message_text(layout, example.context)
        + ask_text(layout, speaker(), example.question)
        + answer_text(example.answers[0])
    )


def test_segments_together_are_the_tokens_of_the_whole_text() -> None:
    who = speaker()
    for group in groups(20):
        for e in group:
            (asked,) = split_joint(LAYOUT, who, [(e.question, e.answers[0])])
            assert asked is not None
            ids = head_ids(LAYOUT, who) + who.encode(message_text(LAYOUT, e.context))
            ids += asked.ask + asked.answer
            assert ids == [who.bos_id, *who.encode(whole(LAYOUT, e)), who.eos_id]


def test_labels_end_in_eos_even_where_pad_is_eos() -> None:
    """Fault 21: padding is known by length, so an EOS label survives when pad = EOS = 0."""
    who = dataclasses.replace(speaker(), eos_id=0)
    some = groups(4)
    batch = Collate(LAYOUT, None, {"r": who}, measure(LAYOUT, None, {"r": who}, some))(some)
    lengths = batch["r/answer/lengths"]
    last = batch["r/answer/ids"][np.arange(len(lengths)), lengths - 1]
    assert (last == 0).all()
    assert (lengths >= 2).all()


def test_head_is_the_same_for_training_and_decoding() -> None:
    who = speaker()
    assert head_ids(LAYOUT, who)[0] == who.bos_id
    without = dataclasses.replace(who, bos_id=None)
    assert head_ids(LAYOUT, without) == head_ids(LAYOUT, who)[1:]


def test_anchor_literal_is_stripped_from_the_message() -> None:
    text = message_text(LAYOUT, "The sign says Answer: 42 to all.")
    assert "Answer:" not in text
    assert "42" in text


def test_anchor_with_a_trailing_space_is_refused() -> None:
    with pytest.raises(UserError, match="ends in white space"):
        LayoutConfig(anchor="\nAnswer: ")


def test_start_up_check_counts_and_notices_a_merging_anchor() -> None:
    examples = [e for g in groups(5) for e in g]
    assert check_labels(LAYOUT, speaker(), examples) == len(examples)
    # An anchor that ends inside a word: BPE merges across it, so no token ends where it ends.
    merging = LayoutConfig(question="", anchor="\nQuestio")
    odd = [Example("i", "c", "x", "", ("n",))]
    who = speaker()

    class Joined:
        """A tokenizer seen without the space that belongs to the answer."""

        def __getattr__(self, name: str) -> object:
            return getattr(who.tokenizer, name)

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> object:
            return who.tokenizer.encode_batch(
                [t.replace("Questio n", "Question") for t in texts],
                add_special_tokens=add_special_tokens,
            )

    with pytest.raises(UserError, match="merges the anchor"):
        check_labels(merging, dataclasses.replace(who, tokenizer=Joined()), odd)  # type: ignore[arg-type]


def test_chat_layout_wraps_the_message() -> None:
    who = dataclasses.replace(speaker(), chat=("<user> ", " <assistant>"))
    layout = LayoutConfig(anchor_mode="chat")
    assert who.tokenizer.decode(head_ids(layout, who)[1:]) == "<user> Context:"
    assert ask_text(layout, who, "Who?") == "\nQuestion: Who? <assistant>\nAnswer:"
    with pytest.raises(UserError, match="no chat template"):
        head_ids(layout, speaker())


def test_question_in_the_latent_is_not_asked_again() -> None:
    layout = LayoutConfig(question_in="latent")
    assert ask_text(layout, speaker(), "Who?") == "\nAnswer:"


def test_rows_that_are_too_long_are_dropped_not_cut() -> None:
    some = groups(3, level=4)
    who = {"r": speaker()}
    sizes = dict(measure(LAYOUT, speaker(), who, some).sizes)
    full = Collate(LAYOUT, speaker(), who, Lengths(sizes))(some)
    assert full["valid"].all()
    sizes["r/context"] = 8
    short = Collate(LAYOUT, speaker(), who, Lengths(sizes))(some)
    assert not short["valid"].any()
    assert (short["r/context/lengths"] == 0).all()
