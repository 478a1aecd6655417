"""Several questions behind one copy of the message read as if each were alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bridge.config import ReaderConfig
from lw_jax.data.facts import FactsRows
from lw_jax.objectives import answer_ce, kd
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.objectives.config import ObjectivesConfig
from lw_jax.readers import deep_prefix, soft_prompt, soft_tokens
from lw_jax.receiver.pack import segment
from lw_jax.receiver.read import head_segment, message_segment, read, read_together
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.plan import all_terms, context_of, plan_at
from tests.tiny.evaluation import RECEIVER, World, make_world
from tests.tiny.receiver import model

ROWS, QUESTIONS, ROOM = 3, 3, 400
OBJECTIVES = ObjectivesConfig(answer_ce=answer_ce.Config(), kd=kd.Config())


@cache
def world(with_text: bool = False) -> World:
    made = make_world(ROWS, level=3).with_layout(LayoutConfig(with_text=with_text))
    return made.with_parts(
        5,
        reader=ReaderConfig(
            soft_tokens=soft_tokens.Config(positions="spread"),
            deep_prefix=deep_prefix.Config(length=4, heads=2, mlp_ratio=0),
            soft_prompt=soft_prompt.Config(tokens=3, unit=2.0),
        ),
    )


@cache
def batch(with_text: bool) -> dict[str, np.ndarray]:
    rows = FactsRows("train", 1, 3, ROWS, QUESTIONS)
    groups = [rows[i] for i in range(ROWS)]
    made = world(with_text)
    layout, readers = made.collate.layout, {RECEIVER: made.tokenizer}
    limits = measure(layout, made.sender, readers, groups)
    found = Collate(layout, made.sender, readers, limits)(groups)
    found[f"{RECEIVER}/ask/lengths"][[0, 4]] = 0  # a first and a second one where nothing is asked
    return found


def seen(made: World, params: Any, together: int | None) -> Context:
    ctx, rows = made.ctx, batch(made.collate.layout.with_text)
    return context_of(
        ctx.bridge, params, ctx.frozen, rows, jax.random.key(0), False, together=together
    )


@pytest.mark.parametrize("with_text", [pytest.param(False, marks=pytest.mark.slow), True])
def test_each_question_reads_what_it_reads_alone(with_text: bool) -> None:
    made = world(with_text)

    @jax.jit
    def hidden(params: Any) -> Any:
        found = {}
        for name, together in (("alone", None), ("together", ROOM)):
            for message in ("latent", "text", "none"):
                asked = Pass(message)  # type: ignore[arg-type]
                read = seen(made, params, together).reading(RECEIVER, asked)
                found[name, message] = (read.hidden * read.mask[..., None], read.mask)
        return found

    found = jax.device_get(hidden(made.ctx.params))
    for message in ("latent", "text", "none"):
        alone, together = found["alone", message], found["together", message]
        assert together[1].tolist() == alone[1].tolist()
        size = np.sqrt(np.mean(np.square(alone[0][alone[1]])))
        chex.assert_trees_all_close(together[0] / size, alone[0] / size, atol=1e-5)
    assert np.abs(found["alone", "latent"][0] - found["alone", "none"][0]).max() > 1e-2


def test_losses_and_gradients_are_the_same() -> None:
    made, plan = world(), plan_at(OBJECTIVES, 0)

    def loss(params: Any, together: int | None) -> Any:
        terms, _ = all_terms(plan, seen(made, params, together), {})
        return sum(t.total / t.count for t in terms.values())

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    alone, together = (both(made.ctx.params, room) for room in (None, ROOM))
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    chex.assert_trees_all_close(together[1], alone[1], atol=1e-5)


def test_what_finds_no_room_is_left_out_and_the_others_are_read_as_before() -> None:
    made, rows = world(), batch(False)
    sizes = rows[f"{RECEIVER}/ask/lengths"] + rows[f"{RECEIVER}/answer/lengths"]
    each = sizes.reshape(ROWS, QUESTIONS)
    room = int(each[:, :2].sum(axis=1).max())
    fits = (np.cumsum(each, axis=1) <= room).reshape(-1)
    assert 0 < fits.sum() < fits.size

    @jax.jit
    def read(params: Any) -> Any:
        little, much = (seen(made, params, n) for n in (room, ROOM))
        found = little.reading(RECEIVER, Pass("latent")), much.reading(RECEIVER, Pass("latent"))
        return *((r.hidden, r.mask) for r in found), little.valid

    (few, few_mask), (all_of, mask), valid = jax.device_get(read(made.ctx.params))
    assert valid.tolist() == fits.tolist()
    assert (few_mask.any(axis=1) == fits).all()
    kept = mask[fits]
    found, wanted = (x[fits][kept] for x in (few, all_of))
    size = np.sqrt(np.mean(np.square(wanted)))
    np.testing.assert_allclose(found / size, wanted / size, atol=1e-5)


def test_a_prompt_stands_before_the_message_and_is_no_part_of_it() -> None:
    """As if its vectors were the message's first ones, at the positions before."""
    made = world()
    bare = made.with_parts(5, reader=ReaderConfig(soft_tokens=soft_tokens.Config()))
    prompted = made.with_parts(
        5,
        reader=ReaderConfig(
            soft_tokens=soft_tokens.Config(), soft_prompt=soft_prompt.Config(tokens=3)
        ),
    )

    @jax.jit
    def read(params: Any) -> Any:
        context = seen(prompted, params, None)
        given = context.deliveries[RECEIVER]
        assert given.prompt is not None
        assert given.embeds is not None
        own = context.reading(RECEIVER, Pass("latent")).hidden
        wide = jnp.broadcast_to(given.prompt[None], (ROWS, *given.prompt.shape))
        joined = replace(
            given,
            embeds=jnp.concatenate([wide, given.embeds], axis=1),
            mask=jnp.pad(given.mask, ((0, 0), (3, 0)), constant_values=True),
            positions=None,
            prompt=None,
        )
        other = seen(bare, params, None)
        other.computed["given"] = {RECEIVER: (joined, {})}
        return own, other.reading(RECEIVER, Pass("latent")).hidden

    own, other = jax.device_get(read(prompted.ctx.params))
    size = np.sqrt(np.mean(np.square(other)))
    chex.assert_trees_all_close(own / size, other / size, atol=1e-5)


def test_a_single_token_before_an_answer_predicts_it() -> None:
    """No message and nothing asked: the first state of all is read, as it is alone."""
    made = model()
    ask = segment([[], [7, 8]], 2)
    answer = segment([[9, 10], [11, 12]], 2, "answer")

    def before(rows: int) -> Any:
        return [head_segment((5,), rows), message_segment(None, rows, made.arch.width)]

    @jax.jit
    def both(params: Any) -> Any:
        together = read_together(made.arch, params, before(1), ask, answer, None, ROOM)
        return together.hidden, read(made.arch, params, [*before(2), ask, answer]).hidden

    together, alone = jax.device_get(both(made.params))
    size = np.sqrt(np.mean(np.square(alone)))
    chex.assert_trees_all_close(together / size, alone / size, atol=1e-5)
