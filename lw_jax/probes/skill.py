"""`lw-jax probe skill`: what the receiver still can do with a message that it does not need.

A message of *another* text stands before what the receiver is given in words: a plain text, whose
nats a token are taken, or a text and a question that it answers. Beside it the same without a
message, and with that other text in words in the message's place, which any reader would have to
put up with as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lw_jax.api.shapes import ROW_RUNGS
from lw_jax.data.derange import derangement
from lw_jax.data.example import Example
from lw_jax.errors import UserError, said
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.metrics.squad import exact_match
from lw_jax.evaluate.predict import options_of
from lw_jax.probes.base import (
    SHARE,
    Figure,
    Lines,
    Probed,
    batched,
    figure,
    handed,
    most_slots,
    progress,
    show,
    texts_of,
    write,
)
from lw_jax.probes.config import SkillConfig
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.receiver.pack import segment
from lw_jax.receiver.read import text_after, text_message
from lw_jax.text.layout import asked_ids, message_ids, message_text
from lw_jax.text.stop import stop_of
from lw_jax.types import Latent
from lw_jax.utils.files import read_lines

BEFORE = ("nothing", "message", "words")
"""What stands before: nothing, the message of another text, that text in words."""


class Task(NamedTuple):
    """Something that the receiver is given in words.

    Attributes:
        words: the text in its tokens; () of an instruction without one.
        ask: question and anchor in its tokens.
        answers: that are right.
    """

    words: tuple[int, ...]
    ask: tuple[int, ...]
    answers: tuple[str, ...]


def run(probed: Probed, cfg: SkillConfig) -> Path:
    """Measures it, writes the result and prints the table.

    Returns:
        The path of the result.

    Raises:
        UserError: a file is not as it should be, or there are no two texts.
    """
    began = time.monotonic()
    rows = probed.rows("eval", cfg.rows, cfg.seed)
    if len({row.context for row in rows}) < 2:
        raise UserError("probe skill: fewer than two texts that the sender can read")
    texts = [row.context for row in rows]
    others = derangement(texts).tolist()
    _, latents = probed.sent(rows, "messages")
    plain = texts if cfg.texts is None else texts_of(cfg.texts)[: cfg.rows]
    tasks = _tasks(probed, rows) if cfg.instructions is None else _given(probed, cfg.instructions)
    before = [latents[i] for i in others]
    words = _words(probed, [texts[i] for i in others])
    lines: Lines = {name: {} for name in BEFORE}
    nats = _nats(probed, _words(probed, plain), before, words)
    right = _right(probed, tasks, before, words)
    for name in BEFORE:
        total, count = nats[name]
        held = {"nats_a_token": figure(total, cfg.seed, count, share=False)}
        held["perplexity"] = _exp(held["nats_a_token"])
        if right:
            held["exact_match"] = figure(right[name], cfg.seed)
        if name != "nothing":
            held["nats_more"] = _more(nats[name], nats["nothing"], cfg.seed)
            if right:
                held["exact_match_more"] = _paired(right[name], right["nothing"], cfg.seed)
        lines[name] = held
    path = write(
        probed,
        "skill",
        cfg,
        lines,
        time.monotonic() - began,
        {"texts": len(plain), "instructions": len(tasks)},
    )
    show(probed.console, f"receiver {probed.receiver}, what stands before", lines)
    return path


def _exp(one: Figure) -> Figure:
    low, high = np.exp(one.ci)
    return Figure(float(np.exp(one.value)), (float(low), float(high)), one.n)


def _more(
    own: tuple[np.ndarray, np.ndarray], bare: tuple[np.ndarray, np.ndarray], seed: int
) -> Figure:
    """Nats a token beyond those of the same tokens with nothing before them."""
    return figure(own[0] - bare[0], seed, own[1], share=False)


def _paired(own: Sequence[float], bare: Sequence[float], seed: int) -> Figure:
    value, low_high = bootstrap.paired(own, bare, seed=seed, bounds=SHARE)
    return Figure(value, low_high, len(own))


def _words(probed: Probed, texts: Sequence[str]) -> list[list[int]]:
    """Texts in the receiver's tokens, as they stand in a message's place."""
    layout, tokenizer = probed.wire.pipeline.layout, probed.wire.pipeline.receivers[probed.receiver]
    held = [message_text(layout, Example("", "", text, "", ("",))) for text in texts]
    return message_ids(layout, tokenizer, held)


def _tasks(probed: Probed, rows: Sequence[Example]) -> list[Task]:
    """Questions of the rows, each with its text in words; none where no question is asked."""
    if not probed.asks:
        return []
    layout, tokenizer = probed.wire.pipeline.layout, probed.wire.pipeline.receivers[probed.receiver]
    words = _words(probed, [row.context for row in rows])
    asks = [asked_ids(layout, tokenizer, row.question) for row in rows]
    return [
        Task(tuple(text), tuple(ask), row.answers)
        for text, ask, row in zip(words, asks, rows, strict=True)
    ]


def _given(probed: Probed, place: str) -> list[Task]:
    """The instructions of a file.

    Raises:
        UserError: it cannot be read, or a line has no prompt and answer.
    """
    path = Path(place)
    try:
        lines, bad = read_lines(path, {"prompt": str, "answer": str})
    except OSError as error:
        raise UserError(f"instructions: {place}: {said(error)}") from None
    if bad or not lines:
        raise UserError(
            f"instructions: {place}: {bad} of {bad + len(lines)} lines are no "
            + json.dumps({"prompt": "...", "answer": "..."})
        )
    tokenizer = probed.wire.pipeline.receivers[probed.receiver]
    asks = tokenizer.encode_all([line["prompt"] for line in lines])
    return [Task((), tuple(ask), (line["answer"],)) for ask, line in zip(asks, lines, strict=True)]


def _message(
    probed: Probed,
    name: str,
    latents: Sequence[Latent],
    others: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
    sizes: tuple[int, int, int],
) -> Message:
    """What stands before the question of some rows: what is said above, and then a text in words.

    Args:
        probed: the bridge.
        name: one of `BEFORE`.
        latents: messages of other texts.
        others: those texts in the receiver's tokens.
        own: the text in words that comes next.
        sizes: slots, tokens of other texts and of own ones that are filled up to.
    """
    slots, wide, long = sizes
    ctx = probed.ctx
    if name == "message":
        delivery = handed(ctx, batched(latents, slots))
        message = answer.alone(ctx.model, delivery, len(latents))
        if not long:
            return message
        laid = segment(own, long, "text")
        assert laid.ids is not None
        return Message(message.segment, delivery, text_after(laid.ids, laid.lengths))
    before = others if name == "words" else [()] * len(own)
    both = [[*a, *b] for a, b in zip(before, own, strict=True)]
    laid = segment(both, wide + long, "message")
    assert laid.ids is not None
    return Message(text_message(laid.ids, laid.lengths))


def _before(
    probed: Probed,
    name: str,
    latents: Sequence[Latent],
    others: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
    sizes: tuple[int, int, int],
) -> Iterator[tuple[list[int], int, Message]]:
    """Rows in batches of one size: their numbers (the last one again where there are too few), how
    many of them count, and what `_message` says before them; messages and texts are taken in turn.
    """
    size = ROW_RUNGS[-1]
    for begin in range(0, len(own), size):
        at = [min(i, len(own) - 1) for i in range(begin, begin + size)]
        message = _message(
            probed,
            name,
            [latents[i % len(latents)] for i in at],
            [others[i % len(others)] for i in at],
            [own[i] for i in at],
            sizes,
        )
        yield at, min(size, len(own) - begin), message


def _nats(
    probed: Probed,
    plain: Sequence[Sequence[int]],
    latents: Sequence[Latent],
    others: Sequence[Sequence[int]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each plain text the nats of all its tokens but the first, and their number."""
    ctx, nothing = probed.ctx, [()] * len(plain)
    sizes = most_slots(latents), _up(others), 0
    long = _up(plain)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with progress(probed.console, "plain text", len(BEFORE) * len(plain)) as step:
        for name in BEFORE:
            totals: list[float] = []
            for at, real, message in _before(probed, name, latents, others, nothing, sizes):
                scored = answer.score(
                    ctx.model,
                    ctx.prompt,
                    message,
                    segment([()] * len(at), 1),
                    segment([plain[i] for i in at], long, "answer"),
                    True,
                )
                assert scored.each is not None
                nll = np.asarray(scored.each.nll)
                totals += [float(nll[j, 1 : len(plain[i])].sum()) for j, i in enumerate(at[:real])]
                step(real)
            count = np.array([max(0, len(ids) - 1) for ids in plain], np.float64)
            found[name] = np.asarray(totals), count
    return found


def _right(
    probed: Probed,
    tasks: Sequence[Task],
    latents: Sequence[Latent],
    others: Sequence[Sequence[int]],
) -> dict[str, list[float]]:
    """Whether each task is answered rightly; {} where there is none."""
    if not tasks:
        return {}
    ctx, wire = probed.ctx, probed.wire
    tokenizer = wire.pipeline.receivers[probed.receiver]
    stop = stop_of(tokenizer, wire.decode.stop or ())
    options = options_of(wire.decode, ctx.model.arch, tokenizer, stop)
    words = [task.words for task in tasks]
    long = _up(words) if any(words) else 0
    sizes = most_slots(latents), _up(others), long
    ask = _up([task.ask for task in tasks])
    found: dict[str, list[float]] = {}
    with progress(probed.console, "instructions", len(BEFORE) * len(tasks)) as step:
        for name in BEFORE:
            right: list[float] = []
            for at, real, message in _before(probed, name, latents, others, words, sizes):
                asked = segment([tasks[i].ask for i in at], ask)
                wrote = answer.write(
                    ctx.model, ctx.prompt, message, asked, jax.random.key(0), options
                )
                ids, n, stopped = jax.device_get((wrote.ids, wrote.lengths, wrote.stopped))
                for j, i in enumerate(at[:real]):
                    text = stop.text(tokenizer, ids[j].tolist(), int(n[j]), bool(stopped[j]))
                    right.append(exact_match(text, tasks[i].answers))
                step(real)
            found[name] = right
    return found


def _up(rows: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest, as a multiple of 8."""
    return -(-max(1, *map(len, rows)) // 8) * 8
