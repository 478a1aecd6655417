"""How a receiver is asked: one way to lay out a question, one scorer, one writer.

Training, the quick evaluation, an evaluation, pretraining, the relay and the Python API all come
through `segments`: what differs between them is the message that stands in the sequence.

    [head] [message] [text, where it follows] [ask] [answer, where it is given]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lw_jax.data.example import Example
from lw_jax.models.cache import repeated
from lw_jax.models.decoder import run
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import DecodeOptions, Generation
from lw_jax.models.head import TokenScores, chunked_cross_entropy
from lw_jax.models.split import embedding_table
from lw_jax.receiver.pack import Segment, gather_states, pack
from lw_jax.receiver.read import (
    Reading,
    decode,
    expand,
    head_segment,
    lay_out,
    message_segment,
    prompt_segment,
    read,
    read_together,
    text_after,
    text_message,
)
from lw_jax.text.collate import MULTIPLE, Collate, measure
from lw_jax.text.layout import Prompt, asked_ids, head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.stop import stop_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Delivery

Batch = Mapping[str, Array]
"""Of `lw_jax.text.collate`."""
Kind = Literal["latent", "text", "none"]
"""What stands in the message's place: what a bridge delivers, the text itself, or nothing."""


@struct.dataclass
class Message:
    """What stands in the message's place, and what enters the layers.

    Attributes:
        segment: [N, P] tokens or embeddings.
        delivery: what a bridge delivers, its soft tokens being the segment; None without a bridge.
        text: the text [N, T] right after it, where the receiver reads both.
    """

    segment: Segment
    delivery: Delivery | None = None
    text: Segment | None = None


@struct.dataclass
class Scored:
    """The gold answers of N questions, A tokens at most, under teacher forcing.

    Attributes:
        nll: [N] nats, summed over the answer's tokens.
        tokens: [N] how many there are.
        ranks: [N, A] int32, how many tokens beat the gold one.
        argmax: [N] bool, every gold token is the argmax, at the last one EOS or a token with which
            an answer stops as well: greedy decoding writes the answer.
        last: [N] nats of the answer's last token, its EOS.
        each: the scores [N, A] of every token; None where they were not asked for.
    """

    nll: Array
    tokens: Array
    ranks: Array
    argmax: Array
    last: Array
    each: TokenScores | None = None


# Messages


def delivered(
    model: FrozenDecoder, prompt: Prompt, delivery: Delivery | None, ids: Array, lengths: Array
) -> Message:
    """A bridge's delivery as the layout has it: alone, or with the text right after it.

    Args:
        model: the receiver.
        prompt: what the layout puts around its message.
        delivery: of N rows; None leaves the message empty.
        ids: [N, T] the text in the receiver's tokens.
        lengths: [N] its tokens.
    """
    message = alone(model, delivery, ids.shape[0])
    if not prompt.with_text:
        return message
    return Message(message.segment, delivery, text_after(ids, lengths))


def alone(model: FrozenDecoder, delivery: Delivery | None, rows: int) -> Message:
    """A delivery and nothing else; None: an empty message."""
    width = model.params["embed"].shape[1]
    return Message(message_segment(delivery, rows, width), delivery)


def message_of(
    model: FrozenDecoder,
    prompt: Prompt,
    batch: Batch,
    receiver: str,
    kind: Kind,
    delivery: Delivery | None = None,
    questions: int = 1,
) -> Message:
    """The message of every question of a batch.

    Args:
        model: the receiver.
        prompt: what the layout puts around its message.
        batch: B contexts, N = B * questions questions.
        receiver: its name in the batch.
        kind: what stands in the message's place.
        delivery: of the B contexts; of `text` and `none` only what enters the layers is used.
        questions: of a context.
    """
    given = expand(delivery, questions)
    if kind == "none":
        rows = batch[f"{receiver}/context/ids"].shape[0] * questions
        return Message(alone(model, None, rows).segment, given)
    ids, lengths = (batch[f"{receiver}/context/{part}"] for part in ("ids", "lengths"))
    if questions > 1:
        ids, lengths = (jnp.repeat(x, questions, axis=0) for x in (ids, lengths))
    if kind == "text":
        return Message(text_message(ids, lengths), given)
    return delivered(model, prompt, given, ids, lengths)


def occupied(message: Message) -> Array:
    """[N] receiver columns that the message takes: soft or text tokens, plus prefix columns."""
    columns = message.segment.lengths
    if message.text is not None:
        columns = columns + message.text.lengths
    if message.delivery is not None and message.delivery.kv is not None:
        columns = columns + message.delivery.kv.mask.sum(axis=1, dtype=columns.dtype)
    return columns


def adapter_keys(message: Message) -> tuple[Array, Array, Array]:
    """Keys, each with its value, that a question reads of the message besides its columns: those of
    adapters in the receiver's layers.

    Returns:
        keys [N] in each of those layers, the number of the layers, and keys [N] over all layers and
        heads; zeros where no reader has adapters.
    """
    edits = None if message.delivery is None else message.delivery.edits
    blocks = None if edits is None else edits.blocks
    if blocks is None or blocks.keys is None:
        none = jnp.zeros_like(message.segment.lengths)
        return none, jnp.zeros((), jnp.int32), none
    layers = len(blocks.layers)
    return blocks.keys, jnp.asarray(layers, jnp.int32), blocks.keys * layers * blocks.heads


# Questions


def asked(batch: Batch, receiver: str) -> tuple[Segment, Segment]:
    """What a receiver is asked in a batch, and the gold answers: `ask` and `answer`."""
    ask, answer = (
        Segment(batch[f"{receiver}/{role}/ids"], None, batch[f"{receiver}/{role}/lengths"], role)
        for role in ("ask", "answer")
    )
    return ask, answer


def question(layout: LayoutConfig, tokenizer: Tokenizer, text: str) -> Segment:
    """One question whose answer nobody knows yet, padded so that few shapes are compiled."""
    ids = asked_ids(layout, tokenizer, text)
    row = np.zeros((1, max(1, -(-len(ids) // MULTIPLE)) * MULTIPLE), np.int32)
    row[0, : len(ids)] = ids
    lengths = np.array([len(ids)], np.int32)
    return Segment(jax.device_put(row), None, jax.device_put(lengths), "ask")


# Asking


def segments(
    prompt: Prompt, message: Message, ask: Segment, answer: Segment | None = None
) -> list[Segment]:
    """The receiver's sequence for N questions, up to where it begins to write, or with an answer.

    Args:
        prompt: what the layout puts around the message.
        message: of the N questions.
        ask: question and anchor.
        answer: what is read as the receiver's own words.
    """
    return [*before(prompt, message), ask, *([] if answer is None else [answer])]


def before(prompt: Prompt, message: Message) -> list[Segment]:
    """What stands before the question."""
    rows = message.segment.lengths.shape[0]
    found = [head_segment(prompt.head, rows)]
    if message.delivery is not None and message.delivery.prompt is not None:
        found.append(prompt_segment(message.delivery.prompt, rows))
    return [*found, message.segment, *([] if message.text is None else [message.text])]


def reading(
    model: FrozenDecoder,
    prompt: Prompt,
    message: Message,
    ask: Segment,
    answer: Segment,
    together: int | None = None,
) -> Reading:
    """The receiver's states where it predicts the answers.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message.
        message: of the N questions; with `together` of their contexts.
        ask: question and anchor.
        answer: the gold answers.
        together: tokens that all questions of a context have behind one copy of the message; None:
            each question has a row of its own.
    """
    if together is not None:
        return read_together(
            model.arch,
            model.params,
            before(prompt, message),
            ask,
            answer,
            message.delivery,
            together,
            attention=model.attention,
            remat=model.remat,
        )
    laid = segments(prompt, message, ask, answer)
    return read(
        model.arch,
        model.params,
        laid,
        message.delivery,
        attention=model.attention,
        remat=model.remat,
    )


def of_shared_text(
    model: FrozenDecoder,
    prompt: Prompt,
    ids: Array,
    lengths: Array,
    ask: Segment,
    answer: Segment,
) -> Array:
    """The states [N, A, D] where the receiver predicts the answers, as `reading` has them of
    messages that are texts, but each of B texts is read once for its N / B questions.

    Keys and values of the texts are held for all N rows meanwhile.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message.
        ids: [B, T] the texts.
        lengths: [B] their tokens.
        ask: N questions, those of one text beside each other.
        answer: their answers.
    """
    params, times = model.params, ask.lengths.shape[0] // ids.shape[0]
    head = head_segment(prompt.head, ids.shape[0])
    text = lay_out(params, [head, text_message(ids, lengths)], None)
    asked = pack(embedding_table(params), [ask, answer])
    own = text.packed
    begun = run(
        model.arch,
        params,
        own.h,
        positions=text.positions,
        lengths=own.lengths,
        keep=own.h.shape[1] + asked.h.shape[1],
        impl=model.attention,
    )
    assert begun.cache is not None
    before = jnp.repeat(own.lengths, times)[:, None]
    rest = run(
        model.arch,
        params,
        asked.h,
        positions=before + jnp.arange(asked.h.shape[1])[None],
        lengths=asked.lengths,
        cache=repeated(begun.cache, times),
        impl=model.attention,
    )
    last = jnp.repeat(gather_states(begun.h, own.lengths - 1, 1), times, axis=0)
    return gather_states(jnp.concatenate([last, rest.h], axis=1), ask.lengths, answer.size)


@partial(jax.jit, static_argnames=("prompt", "each", "stops"))
def score(
    model: FrozenDecoder,
    prompt: Prompt,
    message: Message,
    ask: Segment,
    answer: Segment,
    each: bool = False,
    stops: tuple[int, ...] = (),
) -> Scored:
    """Teacher-forced scores of the answers.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message.
        message: of the N questions.
        ask: question and anchor.
        answer: the gold answers.
        each: whether the scores of every token are wanted as well.
        stops: tokens that end an answer as well as its EOS does (`lw_jax.text.stop.Stop.clean`).
    """
    found = reading(model, prompt, message, ask, answer)
    scores = chunked_cross_entropy(model.arch, model.params, found.hidden, found.labels)
    right = scores.correct(found.labels)
    if stops:
        ends = jnp.isin(found.labels, jnp.asarray(model.arch.eos_ids, jnp.int32))
        last = jnp.arange(found.labels.shape[1])[None] == answer.lengths[:, None] - 1
        right |= last & ends & jnp.isin(scores.argmax, jnp.asarray(stops, jnp.int32))
    return Scored(
        nll=jnp.sum(scores.nll * found.mask, axis=1),
        tokens=found.mask.sum(axis=1),
        ranks=scores.rank,
        argmax=jnp.all(right | ~found.mask, axis=1),
        last=jnp.take_along_axis(scores.nll, answer.lengths[:, None] - 1, axis=1)[:, 0],
        each=scores if each else None,
    )


@partial(jax.jit, static_argnames=("prompt", "options"))
def write(
    model: FrozenDecoder,
    prompt: Prompt,
    message: Message,
    ask: Segment,
    rng: Array,
    options: DecodeOptions,
) -> Generation:
    """Answers of the receiver's own.

    Args:
        model: the receiver.
        prompt: what the layout puts around the message.
        message: of the N questions.
        ask: question and anchor.
        rng: of sampling; greedy decoding does not look at it.
        options: of decoding.
    """
    return decode(
        model.arch,
        model.params,
        segments(prompt, message, ask),
        message.delivery,
        options,
        rng,
        attention=model.attention,
        fused=model.fused,
    )


# A frozen model by itself


def answers(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    layout: LayoutConfig,
    examples: Sequence[Example],
    batch_size: int,
    max_new: int,
    only_first: bool = False,
    stop: tuple[str, ...] = (),
) -> list[str]:
    """Greedy answers of a frozen model to each example's question, given its context as text.

    Args:
        model: a whole language model.
        tokenizer: its own.
        layout: its sequence.
        examples: contexts and questions.
        batch_size: rows at once.
        max_new: tokens written at most.
        only_first: of the first batch alone, which compiles what the others use.
        stop: strings at which an answer ends.
    """
    prompt = Prompt(tuple(head_ids(layout, tokenizer)))
    groups = [(example,) for example in examples]
    lengths = measure(layout, None, {"lm": tokenizer}, groups)
    collate = Collate(layout, None, {"lm": tokenizer}, lengths)
    ends = stop_of(tokenizer, stop)
    options = DecodeOptions(max_new=max_new, eos_ids=model.arch.eos_ids, stop_ids=ends.ids)
    found: list[str] = []
    for begin in range(0, batch_size if only_first else len(groups), batch_size):
        rows = groups[begin : begin + batch_size]
        filled = rows + rows[:1] * (batch_size - len(rows))  # one shape, one program
        batch: Batch = collate(filled)  # type: ignore[assignment]  # of the host
        message, (ask, _) = message_of(model, prompt, batch, "lm", "text"), asked(batch, "lm")
        out = jax.device_get(write(model, prompt, message, ask, jax.random.key(0), options))
        each = zip(out.ids[: len(rows)].tolist(), out.lengths, out.stopped, strict=False)
        found += [ends.text(tokenizer, ids, int(n), bool(stopped)) for ids, n, stopped in each]
    return found
