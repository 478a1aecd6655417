"""Everybody asks a receiver in one way: what each writes and scores is what plain decoding gives.

The reference lays the sequence out by hand and runs the decoder without a cache, so that a fault of
the one writer or the one scorer is seen by each of those that use it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import logsumexp  # type: ignore[import-untyped]

import lw_jax
from lw_jax import api
from lw_jax.bridge.config import ReaderConfig
from lw_jax.evaluate import latents
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import head
from lw_jax.models.decoder import run
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.objectives.common.context import Context, Pass
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_tokens
from lw_jax.receiver import answer
from lw_jax.runs.trained import Trained
from lw_jax.text import layout
from tests.tiny.evaluation import LAYOUT, RECEIVER, World, make_world

ROWS, NEW, ROOM = 12, 6, 160
HOME = Path(lw_jax.__file__).parent


@cache
def made() -> World:
    """Soft tokens alone: a sequence that can be laid out by hand."""
    world = make_world(ROWS, level=2)
    return world.with_parts(5, reader=ReaderConfig(soft_tokens=soft_tokens.Config()))


def test_a_question_is_padded_to_whole_eights() -> None:
    world, sizes = made(), []
    for text in ("", "Who keeps 7 goats?", "Who keeps 7 goats and a hen in the old barn?"):
        asked = answer.question(LAYOUT, world.tokenizer, text)
        ids = layout.asked_ids(LAYOUT, world.tokenizer, text)
        assert asked.ids is not None
        assert asked.ids[0, : len(ids)].tolist() == ids
        assert not asked.ids[0, len(ids) :].any()
        assert asked.lengths.tolist() == [len(ids)]
        assert asked.size == max(8, 8 * -(-len(ids) // 8))
        sizes.append(asked.size)
    assert sizes == sorted(set(sizes))  # each takes more


def test_nobody_else_reads_or_decodes() -> None:
    """`read` and `decode` are called by `receiver/answer.py`, `generate` by `receiver/read.py`."""
    allowed = {
        "lw_jax.receiver.read": ({"read", "decode"}, "receiver/answer.py"),
        "lw_jax.models.generate": ({"generate"}, "receiver/read.py"),
    }
    wrong = []
    for path in HOME.rglob("*.py"):
        here = path.relative_to(HOME).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            for alias in node.names:
                named = f"{node.module}.{alias.name}"
                names, only = allowed.get(node.module, (set[str](), ""))
                if (alias.name in names or named in allowed) and here != only:
                    wrong.append(f"{here}: {named}")
    assert not wrong, "ask through lw_jax.receiver.answer: " + ", ".join(wrong)


@jax.jit
def _logits(model: FrozenDecoder, h: Any, length: Any) -> jax.Array:
    """[T, V] of one sequence h [T, D], of which `length` are real."""
    index = np.arange(h.shape[0])[None]
    out = run(model.arch, model.params, h[None], positions=index, lengths=length[None])
    return head.logits(model.arch, model.params, out.h[0])


def _logits_of(world: World, h: np.ndarray) -> np.ndarray:
    """[T, V] of one sequence h [T, D]."""
    padded = np.pad(h, ((0, ROOM - len(h)), (0, 0)))
    return np.asarray(_logits(world.ctx.model, padded, np.int32(len(h))), np.float64)


def _part(world: World, part: str, row: int) -> np.ndarray:
    """Token ids of a part of a row, without padding."""
    batch = world.batch(0, ROWS)
    return batch[f"{RECEIVER}/{part}/ids"][row][: batch[f"{RECEIVER}/{part}/lengths"][row]]


def _prompt(world: World, row: int, message: np.ndarray) -> np.ndarray:
    """[T, D]: head, a message, the question."""
    table, start = np.asarray(world.ctx.model.params["embed"]), list(world.ctx.prompt.head)
    return np.concatenate([table[start], message, table[_part(world, "ask", row)]])


def _text(world: World, row: int) -> np.ndarray:
    return np.asarray(world.ctx.model.params["embed"])[_part(world, "context", row)]


@cache
def _soft() -> np.ndarray:
    """[N, P, D] soft tokens of every row."""
    given = jax.jit(lambda c, b: c.deliver(c.encode(b)))(made().ctx, made().batch(0, ROWS))
    return np.asarray(given.embeds)


def _greedy(world: World, h: np.ndarray) -> list[int]:
    """Ids written after a prompt, the whole sequence run again for each."""
    ids: list[int] = []
    while len(ids) < NEW:
        token = int(np.argmax(_logits_of(world, h)[-1 - (ROOM - len(h))]))
        if token in world.ctx.model.arch.eos_ids:
            break
        ids.append(token)
        h = np.concatenate([h, np.asarray(world.ctx.model.params["embed"])[[token]]])
    return ids


@cache
def _wanted(row: int, by_text: bool) -> list[int]:
    """What is written after a row's text, or its soft tokens."""
    world = made()
    message = _text(world, row) if by_text else _soft()[row]
    return _greedy(world, _prompt(world, row, message))


def _nll(world: World, row: int, prompt: np.ndarray) -> np.ndarray:
    """[A] of the gold answer after a prompt."""
    gold = _part(world, "answer", row)
    h = np.concatenate([prompt, np.asarray(world.ctx.model.params["embed"])[gold]])
    found = _logits_of(world, h)[np.arange(len(gold)) + len(prompt) - 1]
    return logsumexp(found, axis=1) - found[np.arange(len(gold)), gold]


def _by_the_model_itself(world: World) -> list[str]:
    """Pretraining's measurements, and the relay."""
    return answer.answers(world.ctx.model, world.tokenizer, LAYOUT, world.examples, 3, NEW)


def _by_the_quick_evaluation(world: World) -> list[str]:
    ctx = world.ctx
    ids, lengths = latents.quick_answers(
        ctx.bridge, RECEIVER, NEW, ctx.params, ctx.frozen, world.batch(0, ROWS)
    )
    rows = zip(np.asarray(ids).tolist(), np.asarray(lengths).tolist(), strict=True)
    return [world.tokenizer.backend.decode(row[:n]).strip() for row, n in rows]


def _by_the_api(world: World) -> list[str]:
    pipeline = Pipeline(
        layout=LAYOUT,
        bridge=world.ctx.bridge,
        frozen=world.ctx.frozen,
        sources=world.sender,
        receivers={RECEIVER: world.tokenizer},
        fingerprints={},
        mesh=make_mesh(MeshConfig(data=1)),
    )
    trained = Trained(world.ctx.params, "wire", 0, "last", "random", {}, "0123456789")
    wired = api.Bridge(pipeline, trained, DecodeConfig(max_new_tokens=NEW))
    return [wired.answer(wired.encode(e.context), e.question) for e in world.examples]


@pytest.mark.parametrize(
    ("say", "by_text"),
    [
        (_by_the_model_itself, True),
        (_by_the_quick_evaluation, False),
        (_by_the_api, False),
    ],
)
def test_what_is_written(say: Callable[[World], Sequence[str]], by_text: bool) -> None:
    world = made()
    for row, said in enumerate(say(world)):
        assert said == world.tokenizer.backend.decode(_wanted(row, by_text)).strip()


def test_what_the_quick_evaluation_scores() -> None:
    world, ctx = made(), made().ctx
    start = world.batch(0, ROWS)[f"{RECEIVER}/answer/start"]
    found = latents.quick_scores(
        ctx.bridge, RECEIVER, ctx.params, ctx.frozen, world.batch(0, ROWS), np.int32(0), start
    )
    for row in range(ROWS):
        wanted = _nll(world, row, _prompt(world, row, _soft()[row]))
        np.testing.assert_allclose(found.nll[row], wanted.mean(), rtol=1e-4)


@pytest.mark.parametrize("message", ["latent", "text", "none"])
def test_what_training_scores(message: str) -> None:
    world, ctx = made(), made().ctx

    @jax.jit
    def nll(params: Any, batch: Any, frozen: Any) -> Any:
        views = ctx.bridge.extract(frozen.sender, batch, params)
        context = Context(ctx.bridge, params, frozen, batch, views, jax.random.key(0), train=False)
        read = context.reading(RECEIVER, Pass(message))  # type: ignore[arg-type]
        model = frozen.receivers[RECEIVER]
        scored = head.chunked_cross_entropy(model.arch, model.params, read.hidden, read.labels)
        return scored.nll, read.mask

    scores, mask = (np.asarray(x) for x in nll(ctx.params, dict(world.batch(0, ROWS)), ctx.frozen))
    for row in range(ROWS):
        nothing = np.zeros((0, ctx.model.params["embed"].shape[1]))
        given = {"latent": _soft()[row], "text": _text(world, row), "none": nothing}[message]
        wanted = _nll(world, row, _prompt(world, row, given))
        np.testing.assert_allclose(scores[row][mask[row]], wanted, rtol=1e-3, atol=1e-4)
