"""What the objectives of a step are shown of it, and which questions find room."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lw_jax.objectives.base import Term
from lw_jax.objectives.common.context import TEACHER
from lw_jax.objectives.common.targets import suffix_states
from lw_jax.train.plan import _find_room, context_of, gate
from lw_jax.utils.schedule import Schedule
from tests.tiny.evaluation import RECEIVER, World, make_world


@cache
def world() -> World:
    return make_world(3)


@pytest.mark.parametrize("train", [True, False])
def test_whether_this_is_training_is_passed_on(train: bool) -> None:
    ctx, rows = world().ctx, world().batch(0, 3)
    seen = {}

    def look(params: Any) -> Any:
        context = context_of(ctx.bridge, params, ctx.frozen, rows, jax.random.key(0), train)
        seen["train"] = context.train
        return context.taps.mask

    jax.eval_shape(look, ctx.params)
    assert seen["train"] is train


def lengths(*asked: int) -> dict[str, Any]:
    """Three questions about one text for two receivers; each asks `asked` and answers 2 tokens."""
    found: dict[str, Any] = {}
    for name, size in zip(("a", "b"), asked, strict=True):
        found |= {
            f"{name}/ask/lengths": jnp.full((3,), size),
            f"{name}/answer/lengths": jnp.full((3,), 2),
            f"{name}/context/lengths": jnp.full((1,), 9),
        }
    return found


def test_a_question_counts_where_every_receiver_has_room_for_it() -> None:
    both: Any = SimpleNamespace(receivers={"a": None, "b": None})
    assert _find_room(lengths(2, 2), both, 12).tolist() == [True, True, True]
    assert _find_room(lengths(2, 4), both, 12).tolist() == [True, True, False]
    assert _find_room(lengths(4, 2), both, 12).tolist() == [True, True, False]
    assert _find_room(lengths(4, 9), both, 12).tolist() == [True, False, False]


def test_what_does_not_count_does_not_count_because_there_is_room() -> None:
    ctx, rows = world().ctx, dict(world().batch(0, 3))
    rows["valid"] = jnp.asarray(rows["valid"]).at[1].set(False)

    @jax.jit
    def valid(params: Any) -> Any:
        key = jax.random.key(0)
        return context_of(ctx.bridge, params, ctx.frozen, rows, key, False, together=10_000).valid

    assert valid(ctx.params).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("cosine", "factor"), [(0.2, 0.0), (0.25, 0.0), (0.4, 0.5), (0.5, 1.0), (0.75, 1.0)]
)
def test_a_gate_opens_above_its_cosine_and_halves_below_another(
    cosine: float, factor: float
) -> None:
    schedule = Schedule(gate=0.25, halve=0.5)
    term = Term(jnp.float32(4 * cosine), jnp.float32(4))
    assert float(gate(term, schedule)) == factor
    opened = Schedule(halve=0.5)
    assert float(gate(term, opened)) == (0.5 if cosine < 0.5 else 1.0)
    slope = jax.grad(lambda x: gate(Term(x, jnp.float32(4)), schedule))(jnp.float32(4 * cosine))
    assert float(slope) == 0.0


def test_a_teacher_reads_the_text_without_the_message_and_what_is_kept_of_it_is_taken() -> None:
    """In one pass that all objectives share; what a bridge delivers is not asked for."""
    ctx, rows = world().ctx, world().batch(0, 3)
    seen: dict[str, Any] = {}

    def look(params: Any) -> Any:
        context = context_of(ctx.bridge, params, ctx.frozen, rows, jax.random.key(0), True)
        taught = context.taught(RECEIVER)
        states, _ = suffix_states(context, RECEIVER, "text", 1)
        seen["passes"], seen["delivered"] = set(context.readings), context.delivered
        suffix_states(context, RECEIVER, "latent", 1)
        seen["then"] = context.delivered
        return taught.hidden, states

    jax.eval_shape(look, ctx.params)
    assert seen == {"passes": {(RECEIVER, TEACHER)}, "delivered": False, "then": True}


def test_of_one_question_a_text_nothing_is_shared() -> None:
    """The program is that of a teacher which reads every question's text."""
    ctx, rows = world().ctx, world().batch(0, 3)

    def program(shared: bool) -> str:
        def look(params: Any) -> Any:
            key = jax.random.key(0)
            seen = context_of(ctx.bridge, params, ctx.frozen, rows, key, False, shared_text=shared)
            assert seen.questions == 1
            return seen.taught(RECEIVER).hidden

        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(look)(ctx.params)))

    assert program(True) == program(False)
