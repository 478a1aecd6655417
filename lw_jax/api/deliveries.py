"""What is asked, in arrays: messages of one part or more, questions, texts in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.receiver.join import joined
from lw_jax.receiver.pack import segment
from lw_jax.receiver.read import text_message
from lw_jax.types import Latent


@partial(jax.jit, static_argnames="parts")
def deliver(ctx: EvalContext, sent: Latent, parts: int = 1) -> Message:
    """What a receiver is given of B messages.

    Args:
        ctx: the bridge, and the receiver.
        sent: the parts of the first message, those of the second, ...: B * parts rows; those
            without a slot only fill a message up.
        parts: of each message.
    """
    latent = ctx.received(sent)
    real = latent.mask.any(axis=1)
    delivery = joined(ctx.deliver(latent), parts, real)
    return answer.alone(ctx.model, delivery, latent.mask.shape[0] // parts)


def filled(messages: Sequence[Sequence[Latent]], parts: int, slots: int) -> Latent:
    """Messages as one batch on the host, as `deliver` takes them.

    Args:
        messages: the parts of each, of one row each.
        parts: that each is filled up to.
        slots: that each part is filled up to.
    """
    first = messages[0][0]
    nothing = Latent(
        first.slots[:, :0],
        first.mask[:, :0],
        None if first.span is None else np.zeros(1, np.float32),  # type: ignore[arg-type]
    )
    rows = [part for one in messages for part in [*one, *[nothing] * (parts - len(one))]]
    return packets.filled(rows, slots)


def in_words(rows: Sequence[Sequence[int]], size: int) -> Message:
    """Texts in the receiver's tokens, in the message's place."""
    laid = segment(rows, size)
    assert laid.ids is not None
    return Message(text_message(laid.ids, laid.lengths))
