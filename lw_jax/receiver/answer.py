"""How a receiver is asked: the segments of a question, reading its answer, writing one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lw_jax.data.example import Example
from lw_jax.models.arch import Arch
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.models.generate import DecodeOptions, Generation
from lw_jax.receiver.pack import Segment
from lw_jax.receiver.read import (
    Reading,
    decode,
    expand,
    head_segment,
    message_segment,
    read,
    text_after,
    text_message,
)
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import head_ids
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Delivery, PyTree


def write(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    layout: LayoutConfig,
    examples: Sequence[Example],
    batch_size: int,
    max_new: int,
    only_first: bool = False,
) -> list[str]:
    """Greedy answers to each example's question, given its context as text.

    only_first: of the first batch alone, which compiles what the others use.
    """
    groups = [(example,) for example in examples]
    collate = Collate(
        layout, None, {"lm": tokenizer}, measure(layout, None, {"lm": tokenizer}, groups)
    )
    options = DecodeOptions(max_new=max_new, eos_ids=model.arch.eos_ids)
    answers: list[str] = []
    for begin in range(0, batch_size if only_first else len(groups), batch_size):
        rows = groups[begin : begin + batch_size]
        filled = rows + rows[:1] * (batch_size - len(rows))  # one shape, one program
        out = jax.device_get(
            _greedy(
                model.params,
                collate(filled),
                arch=model.arch,
                head=tuple(head_ids(layout, tokenizer)),
                options=options,
            )
        )
        for ids, length in zip(out.ids[: len(rows)], out.lengths, strict=False):
            answers.append(tokenizer.backend.decode(ids[:length].tolist()).strip())
    return answers


@partial(jax.jit, static_argnames=("arch", "head", "options"))
def _greedy(
    params: PyTree, batch: Any, *, arch: Arch, head: tuple[int, ...], options: DecodeOptions
) -> Generation:
    segments = [
        head_segment(head, batch["lm/context/ids"].shape[0]),
        text_message(batch["lm/context/ids"], batch["lm/context/lengths"]),
        Segment(batch["lm/ask/ids"], None, batch["lm/ask/lengths"], "ask"),
    ]
    return decode(arch, params, segments, None, options, jax.random.key(0))


@struct.dataclass
class Message:
    """What stands in the message's place: a segment [N, P], and what enters the layers.

    text: the text [N, T] right after it, where the receiver reads both.
    """

    segment: Segment
    delivery: Delivery | None = None
    text: Segment | None = None


def occupied(message: Message) -> Array:
    """[N] receiver columns that the message takes: soft or text tokens, plus prefix columns."""
    columns = message.segment.lengths
    if message.text is not None:
        columns = columns + message.text.lengths
    if message.delivery is not None and message.delivery.kv is not None:
        columns = columns + message.delivery.kv.mask.sum(axis=1, dtype=columns.dtype)
    return columns


def segments(
    frozen: FrozenModels,
    batch: dict[str, Array],
    receiver: str,
    message: str,
    delivery: Delivery | None,
    questions: int,
    answer: bool = True,
) -> list[Segment]:
    """The receiver's segments for N questions; the delivery is already expanded to N rows."""
    model, prompt = frozen.receivers[receiver], frozen.prompt(receiver)
    rows = batch[f"{receiver}/ask/ids"].shape[0]
    width = model.params["embed"].shape[1]
    if message == "text":
        middle = text_message(*_repeated(batch, receiver, questions))
    else:
        middle = message_segment(delivery if message == "latent" else None, rows, width)
    parts = [head_segment(prompt.head, rows), middle]
    if message == "latent" and prompt.with_text:
        parts.append(text_after(*_repeated(batch, receiver, questions)))
    for role in ("ask", "answer") if answer else ("ask",):
        ids, lengths = batch[f"{receiver}/{role}/ids"], batch[f"{receiver}/{role}/lengths"]
        parts.append(Segment(ids, None, lengths, role))
    return parts


def _repeated(batch: dict[str, Array], receiver: str, questions: int) -> tuple[Array, Array]:
    """Ids and lengths of every question's context."""
    ids, lengths = (batch[f"{receiver}/context/{part}"] for part in ("ids", "lengths"))
    return jnp.repeat(ids, questions, axis=0), jnp.repeat(lengths, questions, axis=0)


def answer_reading(
    frozen: FrozenModels,
    batch: dict[str, Array],
    receiver: str,
    message: str,
    delivery: Delivery | None,
    questions: int,
) -> Reading:
    """Read the answers of a batch; `delivery` is per context."""
    model = frozen.receivers[receiver]
    given = expand(delivery, questions)
    laid = segments(frozen, batch, receiver, message, given, questions)
    return read(model.arch, model.params, laid, given, attention=model.attention)
