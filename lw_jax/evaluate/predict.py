"""One method on a batch of rows: score the gold answers and write answers of its own.

Everything but the message is the same for all methods, and scoring and decoding lay out the very
same sequence (`lw_jax.receiver.answer`, docs/design.md sections 3 and 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import struct
from rich.console import Console

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import latents
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, Sent
from lw_jax.evaluate.metrics.base import Ended, Prediction
from lw_jax.mesh import fetch
from lw_jax.models.arch import Arch
from lw_jax.models.generate import DecodeOptions, Generation
from lw_jax.receiver.answer import (
    Message,
    Scored,
    adapter_keys,
    asked,
    occupied,
    score,
    write,
)
from lw_jax.text.budget import Cut
from lw_jax.text.layout import first_word
from lw_jax.text.stop import NO_STOP, Stop, stop_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Latent
from lw_jax.utils.compile import AheadOfTime


@struct.dataclass
class Raw:
    """What a receiver says of one batch.

    Attributes:
        scored: the gold answers, scored.
        written: what it writes, G tokens at most.
        columns: [N] receiver columns of the message.
    """

    scored: Scored
    written: Generation
    columns: Array


MessageOf = Callable[[EvalContext, Batch, Any], Message]
"""Of `lw_jax.evaluate.methods.base.Method`."""


@partial(jax.jit, static_argnames="message")
def place(
    message: MessageOf, ctx: EvalContext, batch: Batch, sent: Latent | None
) -> tuple[Message, Array]:
    """A method's message, and the receiver columns [N] that it takes.

    Args:
        message: the method's.
        ctx: the receiver.
        batch: what it is asked.
        sent: what crossed the wire for each row; None where nothing did.
    """
    given = message(ctx, batch, None if sent is None else ctx.received(sent))
    if not isinstance(given, Message):
        raise UserError(
            f"{message.__module__}: message gives a {type(given).__name__}; it has to give a "
            "lw_jax.receiver.answer.Message (lw_jax/evaluate/methods/base.py)"
        )
    return given, occupied(given)


def predict(
    message: MessageOf,
    ctx: EvalContext,
    batch: Batch,
    sent: Latent | None,
    rng: Array,
    options: DecodeOptions,
    stops: tuple[int, ...] = (),
) -> Raw:
    """Score and decode one batch with one method's `message`.

    stops: tokens that end a gold answer as well as its EOS does.

    Methods whose messages have the same shapes (all texts, all latents) share the programs of
    `score` and `write`.
    """
    given, columns = place(message, ctx, batch, sent)
    ask, answer = asked(batch, ctx.receiver)
    return Raw(
        scored=score(ctx.model, ctx.prompt, given, ask, answer, *_scoring(stops)),
        written=write(ctx.model, ctx.prompt, given, ask, rng, options),
        columns=columns,
    )


def _scoring(stops: tuple[int, ...]) -> tuple[Any, ...]:
    """The arguments of `score` after the answer: none where no stop is scored."""
    return (False, stops) if stops else ()


def rate(
    message: MessageOf,
    ctx: EvalContext,
    batches: Sequence[Batch],
    sent: Latent | None,
    stops: tuple[int, ...] = (),
) -> list[Scored]:
    """Score batches that differ in their answers alone, after one message; nothing is written.

    stops: as `predict` is given them, so that both use one program.
    """
    given, _ = place(message, ctx, batches[0], sent)
    return [
        score(ctx.model, ctx.prompt, given, *asked(batch, ctx.receiver), *_scoring(stops))
        for batch in batches
    ]


@dataclass(frozen=True)
class Planned:
    """A call of `predict` that will come.

    Attributes:
        message, ctx, batch, sent, rng, options, stops: its arguments.
    """

    message: MessageOf
    ctx: EvalContext
    batch: Batch
    sent: Latent | None
    rng: Array
    options: DecodeOptions
    stops: tuple[int, ...] = ()


def compile_all(calls: Sequence[Planned], console: Console) -> None:
    """Compile what `predict` needs for these calls, side by side."""
    first, keys = AheadOfTime(), []
    for call in calls:
        keys.append(first.add(place, call.message, call.ctx, call.batch, call.sent))
    placed = first.compile(console)
    second = AheadOfTime()
    for call, key in zip(calls, keys, strict=True):
        make = partial(place, call.message)
        shapes, _ = jax.eval_shape(make, call.ctx, call.batch, call.sent)
        where, _ = placed[key].output_shardings
        given = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
        )
        ask, answer = asked(call.batch, call.ctx.receiver)
        second.add(
            score, call.ctx.model, call.ctx.prompt, given, ask, answer, *_scoring(call.stops)
        )
        second.add(write, call.ctx.model, call.ctx.prompt, given, ask, call.rng, call.options)
    second.compile(console)


@jax.jit
def columns(ctx: EvalContext, batch: Batch, sent: Latent) -> Array:
    """[N] receiver columns that the message of every row's latent takes."""
    return occupied(ctx.delivered(batch, ctx.received(sent)))


@struct.dataclass
class Held:
    """What the message of N latents takes in a receiver.

    Attributes:
        columns: [N] receiver columns.
        keys: [N] keys that adapters read, in each of their layers, besides the columns.
        layers: of the receiver that have such adapters.
        entries: [N] those keys over all layers and heads.
    """

    columns: Array
    keys: Array
    layers: Array
    entries: Array


@jax.jit
def held(ctx: EvalContext, batch: Batch, sent: Latent) -> Held:
    """Columns and keys that the message of every row's latent takes."""
    message = ctx.delivered(batch, ctx.received(sent))
    return Held(occupied(message), *adapter_keys(message))


@jax.jit
def look(ctx: EvalContext, sent: Latent) -> dict[str, Any]:
    """Statistics of what the receiver is given (`lw_jax.evaluate.latents.given`)."""
    latent = ctx.received(sent)
    return latents.given(ctx.bridge, ctx.receiver, ctx.params, ctx.frozen, latent)


def options_of(
    config: DecodeConfig,
    arch: Arch,
    tokenizer: Tokenizer,
    stop: Stop | None = None,
    wire: bool = True,
) -> DecodeOptions:
    """The decoder's options.

    A string of the stop list for the first token bans the token that it begins with, alone and
    after a space (but never a bare space).

    Args:
        config: of decoding.
        arch: the receiver's.
        tokenizer: the receiver's.
        stop: where answers end; None: where `config` says, which may leave it to the task.
        wire: whether the controls meant for the wire act (`Method.of_the_wire`).
    """
    stop = stop_of(tokenizer, config.stop or ()) if stop is None else stop
    every = DecodeOptions(
        max_new=config.max_new_tokens,
        eos_ids=tuple(sorted({*arch.eos_ids, tokenizer.eos_id})),
        stop_ids=stop.ids,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    if not wire:
        return every
    starts = {
        ids[0]
        for text in config.first_token_stop_list
        for ids in tokenizer.encode_all([text.strip(), " " + text.strip()])
        if ids and tokenizer.backend.decode(ids[:1]).strip()
    }
    return replace(
        every,
        min_new=config.min_new_tokens,
        eos_ban_steps=config.eos_ban_steps,
        first_token_temperature=config.first_token_temperature,
        first_token_top_p=config.first_token_top_p,
        first_token_stop=tuple(sorted(starts)),
        gain=() if config.prefix_gain == (1.0,) else config.prefix_gain,
    )


def plain(options: DecodeOptions) -> bool:
    """Whether decoding is greedy with nothing banned: then it must agree with the scorer."""
    return (
        not (options.temperature or options.first_token_temperature)
        and not (options.min_new or options.eos_ban_steps or options.first_token_stop)
        and not options.gain
    )


def shortened(
    batch: dict[str, np.ndarray],
    latent_bytes: Sequence[int],
    *,
    method: Method,
    receiver: str,
    tokenizer: Tokenizer,
) -> dict[str, np.ndarray]:
    """A batch on the host with as much of every row's text as the method keeps.

    latent_bytes: what each row's latent costs; the rows beyond are filling.
    """
    if method.kept is None:
        return batch
    lengths = batch[f"{receiver}/context/lengths"].copy()
    for i, budget in enumerate(latent_bytes):
        ids = batch[f"{receiver}/context/ids"][i][: lengths[i]].tolist()
        lengths[i] = method.kept(tokenizer, ids, budget)
    return batch | {f"{receiver}/context/lengths": lengths}


def cut(
    batch: dict[str, np.ndarray], rows: Sequence[Cut], *, method: Method, receiver: str
) -> dict[str, np.ndarray]:
    """A batch on the host with the tokens of every row's text that the method chooses.

    Args:
        batch: the host's arrays; rows beyond `rows` are filling.
        rows: the texts.
        method: the method.
        receiver: whose tokens they are.

    Raises:
        UserError: the method keeps more than it may.
    """
    if method.cut is None:
        return batch
    ids, lengths = (batch[f"{receiver}/context/{part}"].copy() for part in ("ids", "lengths"))
    for i, row in enumerate(rows):
        kept = list(method.cut(row))
        if len(kept) > min(row.columns, ids.shape[1]):
            raise UserError(
                f"{method.cut.__module__}: cut keeps {len(kept)} tokens of a text whose latent has "
                f"{row.columns} columns (lw_jax/evaluate/methods/base.py)"
            )
        ids[i], lengths[i] = 0, len(kept)
        ids[i, : len(kept)] = kept
    return batch | {f"{receiver}/context/ids": ids, f"{receiver}/context/lengths": lengths}


def prepared(
    batch: dict[str, np.ndarray], *, method: Method, ctx: EvalContext
) -> dict[str, np.ndarray]:
    """A batch on the host with what a method makes there for its message."""
    return batch if method.prepare is None else batch | method.prepare(ctx, batch)


def on_host(
    raw: Raw,
    batch: dict[str, np.ndarray],
    examples: Sequence[Example],
    texts: Sequence[str],
    latent_bytes: Sequence[int],
    *,
    method: Method,
    ctx: EvalContext,
    tokenizer: Tokenizer,
    options: DecodeOptions,
    stop: Stop = NO_STOP,
) -> list[Prediction]:
    """The rows of a batch (as many as there are examples; the rest is filling) in words.

    Args:
        batch: the host's arrays; texts: the messages; latent_bytes: what each row's latent costs.
        stop: where answers end.
    """
    scored, written, columns = fetch((raw.scored, raw.written, raw.columns))
    name, table = ctx.receiver, ctx.model.params["embed"]
    found = []
    for i in range(len(examples)):
        gold = batch[f"{name}/answer/ids"][i][: batch[f"{name}/answer/lengths"][i]].tolist()
        said = written.ids[i][: written.lengths[i] + written.ended[i]].tolist()
        sent = Sent(
            text=texts[i],
            ids=batch[f"{name}/context/ids"][i][: batch[f"{name}/context/lengths"][i]].tolist(),
            columns=int(columns[i]),
            tokenizer=tokenizer,
            latent_bytes=latent_bytes[i],
            embedding_bytes=table.shape[1] * table.dtype.itemsize,
        )
        wire_bytes = method.wire_bytes(sent)
        if not isinstance(wire_bytes, int):
            raise UserError(
                f"{method.wire_bytes.__module__}: wire_bytes gives {wire_bytes!r}; it has to give "
                "a whole number of bytes (lw_jax/evaluate/methods/base.py)"
            )
        length, stopped = int(written.lengths[i]), bool(written.stopped[i])
        text = stop.text(tokenizer, said, length, stopped)
        cut = stopped or stop.held(tokenizer.backend.decode(said[:length]))
        ended: Ended = "stop" if cut else "eos" if written.ended[i] else "limit"
        comparable = (
            plain(options)
            and len(gold) <= options.max_new
            and not set(gold) & set(options.stop_ids)
        )
        if said and said[-1] in stop.clean and gold[-1] in options.eos_ids:
            said[-1] = gold[-1]  # the answer has ended, one way or the other
        found.append(
            Prediction(
                text=text,
                nll=float(scored.nll[i]),
                tokens=int(scored.tokens[i]),
                first_rank=int(scored.ranks[i][first_word(tokenizer, gold)]),
                argmax=bool(scored.argmax[i]),
                same=said == gold if comparable else None,
                columns=sent.columns,
                wire_bytes=wire_bytes,
                ended=ended,
                end_nll=float(scored.last[i]),
            )
        )
    return found
