"""A rival that reads a part of the text reads as many tokens as a latent would have slots."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from lw_jax.config.parse import from_dict
from lw_jax.errors import UserError
from lw_jax.text.budget import KEPT, Cut
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import message_ids, message_text, source_ids, source_text
from lw_jax.text.layout_config import LayoutConfig, TextBudget
from tests.config.fields import BASE
from tests.tiny.evaluation import RECEIVER, World, make_world

RATIO = 3


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(6, level=2)


def collated(world: World, budget: TextBudget | None, limit: int | None = None) -> Collate:
    layout = LayoutConfig(with_text=True, text_budget=budget, max_tokens=limit)
    groups = [(e,) for e in world.examples]
    readers = {RECEIVER: world.tokenizer}
    lengths = measure(layout, world.sender, readers, groups, limit)
    # nats that grow with the place: the most surprising tokens are the last
    texts = [message_text(layout, e) for e in world.examples]
    nats = {text: [(i, i + 1, float(i)) for i in range(len(text))] for text in texts}
    return Collate(layout, world.sender, readers, lengths, nats)


@pytest.mark.parametrize("keep", list(KEPT))
def test_as_many_tokens_stay_as_a_latent_has_slots(world: World, keep: str) -> None:
    made = collated(world, TextBudget(RATIO, keep))  # type: ignore[arg-type]
    batch = made([(e,) for e in world.examples])
    layout, seen = made.layout, set()
    for i, example in enumerate(world.examples):
        (sent,) = source_ids(layout, world.sender, [source_text(layout, example)])
        text = message_text(layout, example)
        (whole,) = message_ids(layout, world.tokenizer, [text])
        columns = ceil(len(sent) / RATIO)
        length = batch[f"{RECEIVER}/context/lengths"][i]
        ids = batch[f"{RECEIVER}/context/ids"][i][:length].tolist()
        assert length == columns if keep != "sentences" else 0 < length <= columns
        expected = {"first": whole[:columns], "last": whole[-columns:]}
        expected["sentences"] = KEPT["sentences"](
            Cut(text, whole, example.question, columns, world.tokenizer.encode)
        )
        if keep in expected:
            assert ids == expected[keep]
        rest = iter(whole)
        assert keep == "sentences" or all(token in rest for token in ids)  # in their order
        assert ids != whole
        seen.add(tuple(ids))
    assert batch["valid"].all() and len(seen) == len(world.examples)
    assert batch[f"{RECEIVER}/context/ids"].shape[1] < 8 + max(map(len, seen))


def test_the_sender_and_the_question_are_whole(world: World) -> None:
    groups = [(e,) for e in world.examples]
    cut, whole = (collated(world, budget)(groups) for budget in (TextBudget(RATIO, "last"), None))
    for key in set(whole) - {f"{RECEIVER}/context/ids", f"{RECEIVER}/context/lengths"}:
        np.testing.assert_array_equal(cut[key], whole[key])


def test_a_text_that_is_too_long_whole_is_left_out_all_the_same(world: World) -> None:
    """So that a rival and the bridge are trained on the same rows."""
    groups = [(e,) for e in world.examples]
    sizes = collated(world, None)(groups)
    limit = int(max(sizes["source/lengths"].max(), sizes[f"{RECEIVER}/context/lengths"].max())) - 1
    cut, whole = (
        collated(world, budget, limit)(groups)["valid"] for budget in (TextBudget(RATIO), None)
    )
    assert not whole.all() and whole.any()
    np.testing.assert_array_equal(cut, whole)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="text_budget: it cuts the text that a rival reads; set wi"):
        LayoutConfig(text_budget=TextBudget(RATIO))
    several = {"with_text": True, "text_budget": {"ratio": 4, "keep": "sentences"}}
    fit = {"train": {"steps": 9, "questions": 2}}
    with pytest.raises(UserError, match=r"stages\.fit\.train\.questions: 2 on each context, and t"):
        from_dict(BASE | {"layout": several, "stages": {"fit": fit}})
    alone = {"with_text": True, "text_budget": {"ratio": 4, "keep": "surprisal"}}
    fit = {"train": {"steps": 9}}
    source = {"bridge": BASE["bridge"] | {"source": {"bytes": {}}}}
    given = BASE | source | {"layout": alone, "stages": {"fit": fit}, "sender": None}
    with pytest.raises(UserError, match=r"sender: missing, and stages\.fit\.train's text_bud"):
        from_dict(given)


def test_an_option_that_is_off_is_none() -> None:
    assert replace(LayoutConfig(), text_budget=None).differs(LayoutConfig()) == {}
