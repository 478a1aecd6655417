"""`latent_<codec>`: the latent sent at another precision than the bridge was trained for."""

from __future__ import annotations

import dataclasses
from functools import cache

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message
from lw_jax.wire.rounding import as_sent


@cache  # a message is a static argument of the jitted step
def at_precision(codec_name: str) -> Method:
    """The method `latent`, with the slots as one of `lw_jax.wire.codecs.CODECS` leaves them."""

    def message(ctx: EvalContext, batch: Batch) -> Message:
        own = ctx.encode(batch)
        sent = dataclasses.replace(own, slots=as_sent(own.slots, codec_name))
        return ctx.delivered(batch, sent)

    return Method(message, latent_bytes, needs_bridge=True)
