"""`embedding_replay_<change>`: the text's own embeddings, changed, as soft tokens."""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method
from lw_jax.evaluate.methods.embedding_replay_raw import wire_bytes
from lw_jax.evaluate.replay import change
from lw_jax.models.decoder import embed_tokens
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Delivery


@cache  # a message is a static argument of the jitted step
def replayed(name: str) -> Method:
    """The method `embedding_replay_raw`, with one change of `lw_jax.evaluate.replay`."""
    how = change(name)

    def message(ctx: EvalContext, batch: Batch, latent: None) -> Message:
        ids, lengths = ctx.context(batch)
        mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        embeds = embed_tokens(ctx.model.params, ids)
        table, rms = ctx.model.params["embed"], ctx.bridge.dims.receivers[ctx.receiver].embed_rms
        changed = how(embeds.astype(jnp.float32), mask, table, rms).astype(embeds.dtype)
        return alone(ctx.model, Delivery(embeds=changed, mask=mask), ids.shape[0])

    return Method(message, wire_bytes)
