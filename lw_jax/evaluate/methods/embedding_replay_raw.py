"""`embedding_replay_raw`: the text's own token embeddings, delivered as soft tokens.

Must equal `text`: if it does not, the soft-token path is broken, whatever the latent says.
"""

from __future__ import annotations

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, embedding_bytes
from lw_jax.models.decoder import embed_tokens
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Delivery


def message(ctx: EvalContext, batch: Batch, latent: None) -> Message:
    """The embeddings of the text."""
    ids, lengths = ctx.context(batch)
    mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    given = Delivery(embeds=embed_tokens(ctx.model.params, ids), mask=mask)
    return alone(ctx.model, given, ids.shape[0])


METHOD = Method(message, embedding_bytes, order=80)
