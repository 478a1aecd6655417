"""Soft tokens of their own for each passage, optimised against a frozen receiver.

They are free: no sender, compressor or reader has a part in them. What they are to bring about is
that the receiver writes the passage after them, and the words that are missing where it is given
stretches of the passage with a gap. Questions of the data play no part.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from lw_jax.data import cloze
from lw_jax.data.example import Example
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.receiver import answer
from lw_jax.receiver.pack import Segment, segment
from lw_jax.text.collate import MULTIPLE
from lw_jax.text.layout import Asked, Prompt, message_ids, message_text, split_joint
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Delivery
from lw_jax.utils.compile import AheadOfTime

ADAM = optax.scale_by_adam(b1=0.9, b2=0.98)


class Passage(NamedTuple):
    """A passage in the receiver's tokens.

    Attributes:
        rows: the questions about it; those of a bridge that asks nothing are never read.
        words: the text, as it stands in a message's place.
        whole: what asks for the passage, and the passage.
        gaps: what asks for missing words, and these.
    """

    rows: tuple[Example, ...]
    words: list[int]
    whole: Asked
    gaps: tuple[Asked, ...]


@struct.dataclass
class Goal:
    """What the passages of a batch are to be written as: Q questions of each, N = B * Q.

    Attributes:
        ask: [N, S] what is asked: for the passage first, then for missing words.
        answer: [N, A] what is to be written.
        first: [N] bool, whether the passage is asked for.
        room: tokens that the questions of a passage take behind one copy of its soft tokens; None:
            the passage alone is asked for.
    """

    ask: Segment
    answer: Segment
    first: Array
    room: int | None = struct.field(pytree_node=False)


class Batch(NamedTuple):
    """Passages that are optimised together.

    Attributes:
        at: their numbers; the last one again where there are too few.
        real: how many count.
        x: [B, M, D] float32 soft tokens, zeros where there are none.
        mask: [B, M] bool.
        goal: what they are to bring about.
    """

    at: list[int]
    real: int
    x: Array
    mask: Array
    goal: Goal


def passage(
    layout: LayoutConfig,
    tokenizer: Tokenizer,
    rows: tuple[Example, ...],
    anchor: str,
    gaps: int,
    seed: int,
) -> Passage | None:
    """A passage in the receiver's tokens; None: its tokens do not end where the anchor does.

    Args:
        layout: of the run.
        tokenizer: the receiver's.
        rows: the questions about it.
        anchor: literal after which it is written.
        gaps: stretches with a gap, at most; fewer where the passage has fewer.
        seed: of what is drawn.
    """
    row = rows[0]
    text = message_text(layout, Example("", "", row.context, "", ("",)))
    (words,) = message_ids(layout, tokenizer, [text])
    plain = replace(
        layout, question="", anchor=anchor, anchor_mode="text", question_in="receiver",
        target="answer",
    )  # fmt: skip
    (whole,) = split_joint(plain, tokenizer, [("", row.context)])
    if whole is None or not words:
        return None
    rng = random.Random(f"{seed}/{row.context_id}")
    drawn = (cloze.question(row.context, "____", 0.12, rng) for _ in range(4 * gaps))
    pairs = list(dict.fromkeys(one for one in drawn if one is not None))[:gaps]
    asked = split_joint(layout, tokenizer, pairs) if pairs else []
    return Passage(rows, words, whole, tuple(one for one in asked if one is not None))


def batches(
    passages: Sequence[Passage], slots: Sequence[np.ndarray], size: int, gaps: int
) -> list[Batch]:
    """Passages of like lengths together.

    Args:
        passages: the passages.
        slots: [M, D] what the soft tokens of each begin as.
        size: passages of a batch, at most.
        gaps: stretches with a gap of each.
    """
    order = np.argsort([len(one.whole.answer) for one in passages], kind="stable").tolist()
    size = min(size, len(order))
    found = []
    for begin in range(0, len(order), size):
        own = order[begin : begin + size]
        at = [*own, *own[-1:] * (size - len(own))]
        x, mask = filled([slots[i] for i in at])
        groups = [_questions(passages[i], gaps) for i in at]
        asked = [one for group in groups for one in group]
        room = up(sum(len(one.ask) + len(one.answer) for one in group) for group in groups)
        first = np.arange(len(asked)) % (1 + gaps) == 0
        goal = Goal(
            segment([one.ask for one in asked], up(len(one.ask) for one in asked)),
            segment([one.answer for one in asked], up(len(one.answer) for one in asked), "answer"),
            jnp.asarray(first),
            room if gaps else None,
        )
        found.append(Batch(at, len(own), x, mask, goal))
    return found


def _questions(one: Passage, gaps: int) -> list[Asked]:
    """The passage and `gaps` gaps; where it has fewer, some twice, where it has none, itself."""
    some = one.gaps or (one.whole,)
    return [one.whole, *(some[i % len(some)] for i in range(gaps))]


def up(sizes: Iterable[int]) -> int:
    """The largest, rounded up: the size that rows are padded to."""
    return int(-(-max(sizes) // MULTIPLE) * MULTIPLE)


def filled(slots: Sequence[np.ndarray], size: int | None = None) -> tuple[Array, Array]:
    """Soft tokens [M, D] of each row as one array [B, M, D], float32, and their mask.

    Args:
        slots: of each row.
        size: M; None: the most that any has, rounded up.
    """
    most = up(len(one) for one in slots) if size is None else size
    x = np.zeros((len(slots), most, slots[0].shape[1]), np.float32)
    mask = np.zeros(x.shape[:2], bool)
    for i, one in enumerate(slots):
        x[i, : len(one)], mask[i, : len(one)] = one, True
    return jnp.asarray(x), jnp.asarray(mask)


def delivered(x: Array, mask: Array, beside: Delivery) -> Delivery:
    """Soft tokens [B, M, D], one after another, and what is the same before every message."""
    columns = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.float32)[None], mask.shape)
    return replace(beside, embeds=x, mask=mask, positions=columns)


def descend(
    model: FrozenDecoder,
    prompt: Prompt,
    beside: Delivery,
    held: Sequence[Batch],
    steps: int,
    lr: float,
    unit: float,
    step: Callable[..., None],
) -> tuple[dict[int, np.ndarray], list[float]]:
    """Optimises the soft tokens of all batches.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message.
        beside: what stands before every message alike.
        held: the batches.
        steps: of each.
        lr: the first rate; it falls in a straight line.
        unit: in which it is: the root mean square of the soft tokens.
        step: told of every tenth of the steps.

    Returns:
        Soft tokens [M, D] by passage, and nats a token of the passages before each tenth of the
        steps and before the last step.
    """
    rates = lr * unit * (1 - np.arange(steps, dtype=np.float32) / steps)
    size = _part(steps)
    parts = [rates[begin : begin + size] for begin in range(0, steps, size)]
    curve = np.zeros(len(parts) + 1)
    found: dict[int, np.ndarray] = {}
    for one in held:
        x, state = one.x, ADAM.init(one.x)
        for i, part in enumerate(parts):
            padded = jnp.asarray(np.pad(part, (0, size - len(part))))  # at a rate of 0 all stays
            out = moved(model, prompt, beside, x, one.mask, state, one.goal, padded)
            # By way of the host: what comes in is placed alike each time, for one program.
            nats, x, state = jax.tree.map(jnp.asarray, jax.device_get(out))
            seen = np.asarray(nats)[: len(part), : one.real]
            curve[i] += seen[0].sum()
            step(len(part), f"{seen[-1].mean():.3f} nats a token")
        curve[-1] += seen[-1].sum()
        after, mask = np.asarray(x), np.asarray(one.mask)
        found |= {one.at[j]: after[j][mask[j]] for j in range(one.real)}
    count = sum(one.real for one in held)
    return found, (curve / count).tolist()


def prepare(
    plan: AheadOfTime,
    model: FrozenDecoder,
    prompt: Prompt,
    beside: Delivery,
    held: Sequence[Batch],
    steps: int,
) -> None:
    """Adds the programs of `descend` to those that are compiled side by side."""
    rates = jnp.zeros((_part(steps),), jnp.float32)
    for one in held:
        state = ADAM.init(one.x)
        plan.add(moved, model, prompt, beside, one.x, one.mask, state, one.goal, rates)


def _part(steps: int) -> int:
    """Steps of one call: a tenth."""
    return -(-steps // 10)


@partial(jax.jit, static_argnames="prompt")
def moved(
    model: FrozenDecoder,
    prompt: Prompt,
    beside: Delivery,
    x: Array,
    mask: Array,
    state: Any,
    goal: Goal,
    rates: Array,
) -> tuple[Array, Array, Any]:
    """As many steps as there are rates: nats a token [n, B] of the passages before each, and soft
    tokens and state after them."""

    def loss_of(x: Array) -> tuple[Array, Array]:
        rows = x.shape[0]
        message = answer.alone(model, delivered(x, mask, beside), rows)
        read = answer.reading(model, prompt, message, goal.ask, goal.answer, goal.room)
        scores = chunked_cross_entropy(
            model.arch, model.params, read.hidden, read.labels, mask=read.mask
        )
        each = jnp.sum(scores.nll * read.mask, axis=1)
        tokens = goal.answer.lengths.astype(jnp.float32)
        part = lambda y, kept: jnp.sum((y * kept).reshape(rows, -1), axis=1)  # noqa: E731
        own = part(each, goal.first) / part(tokens, goal.first)
        gaps = part(each, ~goal.first) / jnp.maximum(1.0, part(tokens, ~goal.first))
        return jnp.sum(own + gaps), own

    def step(held: tuple[Array, Any], rate: Array) -> tuple[tuple[Array, Any], Array]:
        x, state = held
        grads, own = jax.grad(loss_of, has_aux=True)(x)
        updates, state = ADAM.update(grads, state)
        return (jnp.where(mask[..., None], x - rate * updates, 0.0), state), own

    (x, state), nats = jax.lax.scan(step, (x, state), rates)
    return nats, x, state
