"""`embedding_replay_<change>`: the text's own embeddings, changed, as soft tokens.

See docs/design.md section 8, and `lw_jax.text.transform` for the changes.

A reader's soft tokens are unlike embeddings in loudness, in distribution, or in lying beside the
table's rows. Each change does one of these to the text's own embeddings, and nothing else: what the
receiver then still reads is what that unlikeness costs.
"""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Family, Method, embedding_bytes
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.split import embedding_table
from lw_jax.receiver.answer import Message, alone
from lw_jax.receiver.transform import change
from lw_jax.text.transform import KNOWN
from lw_jax.types import Delivery


@cache  # a message is a static argument of the jitted step
def replayed(name: str) -> Method:
    """The method that reads the text's own embeddings after one change.

    Raises:
        UserError: there is no such change.
    """
    how = change(name)

    def message(ctx: EvalContext, batch: Batch, latent: None) -> Message:
        ids, lengths = ctx.context(batch)
        mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        embeds = embed_tokens(ctx.model.params, ids)
        table = embedding_table(ctx.model.params)
        rms = ctx.bridge.dims.receivers[ctx.receiver].embed_rms
        changed = how(embeds.astype(jnp.float32), mask, table, rms).astype(embeds.dtype)
        return alone(ctx.model, Delivery(embeds=changed, mask=mask), ids.shape[0])

    return Method(message, embedding_bytes, order=200, default=False)


FAMILY = Family("embedding_replay_", replayed, ends=KNOWN)
