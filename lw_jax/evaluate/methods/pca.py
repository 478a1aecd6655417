"""`pca`: the text's own principal components as soft tokens, in as many columns as the latent has.

The training-free baseline of docs/design.md sections 4 and 8 (32 components over the prompt: F1 1.8
in the earlier systems). The text's T embeddings have the mean m and, once centred, the singular
values s and right singular vectors v. What is delivered, by descending variance:

    m,  s_1 v_1 / sqrt(T),  s_2 v_2 / sqrt(T),  ...

A component is thus as long as the deviation along it. Its sign is free, and set so that its entry
of the largest size is positive. With M columns these are the mean and M - 1 components, and never
more vectors than the text has tokens, or than it can have directions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, budget, embedding_bytes
from lw_jax.models.decoder import embed_tokens
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Array, Delivery, Latent


def components(embeds: Array, mask: Array) -> Array:
    """Mean and scaled principal components of the rows of embeds [N, T, D] in mask [N, T].

    Returns:
        [N, T, D] float32, the mean first; as good as zero where a text has no further direction,
        zero beyond its length (T tokens have T - 1 directions).
    """
    keep = mask[..., None].astype(jnp.float32)
    x = embeds.astype(jnp.float32) * keep
    count = jnp.maximum(1.0, keep.sum(axis=1, keepdims=True))
    mean = jnp.sum(x, axis=1, keepdims=True) / count
    x = (x - mean) * keep
    # With x = u s v, u is also of x x^T, and s v is u^T x: nothing is divided by a small s. Rows of
    # zeros, where padding stood, add directions that nothing lies along, which come last.
    exact = jax.lax.Precision.HIGHEST
    _, left = jnp.linalg.eigh(jnp.einsum("ntd,nsd->nts", x, x, precision=exact))
    scaled = jnp.einsum("ntk,ntd->nkd", left[..., ::-1], x, precision=exact) / jnp.sqrt(count)
    largest = jnp.argmax(jnp.abs(scaled), axis=-1, keepdims=True)
    scaled = scaled * jnp.where(jnp.take_along_axis(scaled, largest, axis=-1) < 0, -1.0, 1.0)
    return jnp.concatenate([mean, scaled[:, :-1]], axis=1) * keep


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The components of the text, as many as the row's own latent message has columns."""
    ids, lengths = ctx.context(batch)
    index, embeds = jnp.arange(ids.shape[1])[None], embed_tokens(ctx.model.params, ids)
    found = components(embeds, index < lengths[:, None]).astype(embeds.dtype)
    used = jnp.minimum(jnp.minimum(lengths, budget(ctx, batch, own)), embeds.shape[-1] + 1)
    return alone(ctx.model, Delivery(embeds=found, mask=index < used[:, None]), ids.shape[0])


METHOD = Method(message, embedding_bytes, order=60, latent="own", default=False, wire=False)
