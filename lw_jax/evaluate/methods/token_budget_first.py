"""`token_budget_first`: the text's first tokens, as many as the message has receiver columns.

Only the text that the latent replaces is cut; question and anchor stay. The budget counts all the
columns that the message occupies: 16 soft tokens with a prefix of 100 columns are 116.
"""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, Sent, budget
from lw_jax.receiver.answer import Message
from lw_jax.receiver.read import text_message
from lw_jax.types import Latent


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The first tokens of the text."""
    ids, lengths = ctx.context(batch)
    return Message(text_message(ids, jnp.minimum(lengths, budget(ctx, batch, own))))


def wire_bytes(sent: Sent) -> int:
    """UTF-8 bytes of what is left of the text."""
    return len(sent.tokenizer.backend.decode(sent.ids[: sent.columns]).encode())


METHOD = Method(message, wire_bytes, order=30, latent="own", wire=False)
