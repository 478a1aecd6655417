"""`embedding_replay_adapter`: the soft tokens that the reader makes of the latent, nothing else.

Prefix, adapters, LoRA and changed keys and values are left out, so the receiver is the clean one:
what is left of `latent` is what its columns carry as embeddings.
"""

from __future__ import annotations

from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, latent_bytes
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Delivery, Latent


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The soft tokens of the row's own latent.

    Raises:
        UserError: the reader delivers none.
    """
    given = ctx.deliver(own)
    if given.embeds is None:
        raise UserError(
            "methods: embedding_replay_adapter reads soft tokens, and this bridge delivers none; "
            "leave it out, or set bridge.reader.soft_tokens"
        )
    soft = Delivery(given.embeds, given.mask, given.positions, advance=given.advance)
    return alone(ctx.model, soft, own.mask.shape[0])


METHOD = Method(message, latent_bytes, order=82, latent="own", default=False)
