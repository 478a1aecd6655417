"""Budgets that choose among a text's tokens: sentences near the question, surprising tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.predict import cut
from lw_jax.evaluate.surprisal import of_texts
from lw_jax.text.budget import Cut, of_tokens, offsets, sentences
from tests.tiny.evaluation import LAYOUT, World

TEXT = (
    " The city lies on a river. Its mayor was born in 1950. The river flows north, past "
    'a "mill." In winter the mayor skates on the river with Dr. Anna Weiss and her dog.'
)


def encode(text: str) -> list[int]:
    """A token for each word, by its place in TEXT."""
    return [TEXT.split().index(word) for word in text.split()]


def row(columns: int, question: str = "When was the mayor born?", **more) -> Cut:
    return Cut(TEXT, encode(TEXT), question, columns, encode, **more)


def words(ids: list[int]) -> str:
    return " ".join(TEXT.split()[i] for i in ids)


def test_sentences_join_to_the_text():
    found = sentences(TEXT)
    assert "".join(found) == TEXT
    assert found[0] == " The city lies on a river."
    assert found[2].endswith('a "mill."')
    assert sentences("no end") == ["no end"]


@pytest.mark.parametrize(
    ("columns", "left"),
    [
        (6, "Its mayor was born in 1950."),
        (4, "Its mayor was born"),
        (9, "Its mayor was born in 1950. In winter the"),
        (0, ""),
        (99, " ".join(TEXT.split())),
    ],
)
def test_the_sentences_nearest_the_question_are_left(columns, left):
    found = method("token_budget_sentences").cut(row(columns))
    assert words(found) == left


def test_without_a_question_the_first_sentences_are_left():
    found = method("token_budget_sentences").cut(row(8, ""))
    assert words(found) == "The city lies on a river. Its mayor"


def test_the_most_surprising_tokens_are_left_in_order():
    ids = encode(TEXT)
    nats = [0.1] * len(ids)
    nats[9], nats[2], nats[4] = 7.0, 3.0, 5.0
    found = method("token_budget_surprisal").cut(row(3, nats=nats))
    assert found == [ids[2], ids[4], ids[9]]


def test_a_batch_holds_what_was_chosen_and_no_more_than_fits():
    ids = np.arange(24, dtype=np.int32).reshape(2, 12)
    batch = {"r/context/ids": ids, "r/context/lengths": np.full(2, 12, np.int32), "other": ids}
    how = method("token_budget_sentences")
    found = cut(batch, [row(4)], method=how, receiver="r")
    assert found["r/context/lengths"].tolist() == [4, 12]  # the last row is filling
    assert found["r/context/ids"][0, :4].tolist() == encode("Its mayor was born")
    assert not found["r/context/ids"][0, 4:].any()
    assert batch["r/context/ids"] is ids and ids[0, 0] == 0 and ids[0, 11] == 11
    assert cut(batch, [], method=method("text"), receiver="r") is batch
    with pytest.raises(UserError, match="cut keeps 24 tokens of a text whose latent has 3 columns"):
        cut(
            batch,
            [row(3)],
            method=how.__class__(**vars(how) | {"cut": lambda row: [1] * 24}),
            receiver="r",
        )


def test_nats_go_over_from_the_senders_tokens_to_the_receivers(world: World):
    """By characters, none lost; a text's first token is predicted from what stands before it."""
    texts = [f" {example.context}" for example in world.examples[:3]]
    sender = world.ctx.frozen.sender
    found = of_texts(LAYOUT, sender, world.sender, texts, 2)
    for text, spans in zip(texts, found, strict=True):
        assert spans[0][0] == 0
        assert spans[-1][1] == len(text)
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(spans))
        assert min(nats for *_, nats in spans) > 0
        ids = world.tokenizer.encode(text)
        nats = of_tokens(spans, text, world.tokenizer, ids)
        assert len(nats) == len(ids)
        assert sum(nats) == pytest.approx(sum(nats for *_, nats in spans), rel=1e-6)
        pieces = [text[a:b] for a, b in offsets(world.tokenizer, text, ids)]
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    again = of_texts(LAYOUT, sender, world.sender, texts[2:], 2)
    np.testing.assert_allclose([n for *_, n in again[0]], [n for *_, n in found[2]], rtol=1e-4)


def test_a_budget_by_entries_is_cut_as_that_by_columns():
    for what in ("sentences", "surprisal"):
        own, other = method(f"token_budget_kv_{what}"), method(f"token_budget_{what}")
        assert (own.cut, own.surprisal) == (other.cut, other.surprisal)
        assert own.by_entries and not other.by_entries
    assert words(method("token_budget_kv_last").cut(row(3))) == "and her dog."
    assert words(method("token_budget_kv_first").cut(row(2))) == "The city"
    with pytest.raises(UserError, match="unknown 'token_budget_kv_most'; one of first, last, sent"):
        method("token_budget_kv_most")
