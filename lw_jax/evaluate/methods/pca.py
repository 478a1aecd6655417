"""`pca`: the text's own principal components as soft tokens, in as many columns as the latent has.

The training-free baseline of docs/design.md sections 4 and 8 (32 components over the prompt: F1 1.8
in the earlier systems). The text's T embeddings have the mean m and, once centred, the singular
values s and right singular vectors v. What is delivered, by descending variance:

    m,  s_1 v_1 / sqrt(T),  s_2 v_2 / sqrt(T),  ...

A component is thus as long as the deviation along it. Its sign is free, and set so that its entry
of the largest size is positive. With M columns these are the mean and M - 1 components, and never
more vectors than the text has tokens, or than it can have directions.

They are reckoned by NumPy before the message is placed, see `lw_jax.evaluate.slots.ranked`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.evaluate.methods.base import Batch, EvalContext, Method, budget, embedding_bytes
from lw_jax.mesh import fetch
from lw_jax.models.decoder import embed_tokens
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Delivery, Latent

COMPONENTS = "pca/components"
_embedded = jax.jit(embed_tokens)


def components(embeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean and scaled principal components of the rows of embeds [N, T, D] in mask [N, T].

    Returns:
        [N, T, D] float32, the mean first; as good as zero where a text has no further direction,
        zero beyond its length (T tokens have T - 1 directions).
    """
    keep = mask[..., None].astype(np.float32)
    x = embeds.astype(np.float32) * keep
    count = np.maximum(1, keep.sum(axis=1, keepdims=True))
    mean = np.sum(x, axis=1, keepdims=True) / count
    x = (x - mean) * keep
    # With x = u s v, u is also of x x^T, and s v is u^T x: nothing is divided by a small s. Rows of
    # zeros, where padding stood, add directions that nothing lies along, which come last.
    _, left = np.linalg.eigh(x @ x.swapaxes(1, 2))
    scaled = left[..., ::-1].swapaxes(1, 2) @ x / np.sqrt(count)
    largest = np.argmax(np.abs(scaled), axis=-1, keepdims=True)
    scaled = np.where(np.take_along_axis(scaled, largest, axis=-1) < 0, -scaled, scaled)
    found: np.ndarray = np.concatenate([mean, scaled[:, :-1]], axis=1) * keep
    return found


def prepare(ctx: EvalContext, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The components of every row's text, [N, T, D] in the dtype of the embeddings."""
    ids, lengths = ctx.context(batch)
    embeds = fetch(_embedded(ctx.model.params, ids))
    mask = np.arange(ids.shape[1]) < np.asarray(lengths)[:, None]
    return {COMPONENTS: components(embeds, mask).astype(embeds.dtype)}


def message(ctx: EvalContext, batch: Batch, own: Latent) -> Message:
    """The components of the text, as many as the row's own latent message has columns."""
    found, (ids, lengths) = batch[COMPONENTS], ctx.context(batch)
    used = jnp.minimum(jnp.minimum(lengths, budget(ctx, batch, own)), found.shape[-1] + 1)
    mask = jnp.arange(ids.shape[1])[None] < used[:, None]
    return alone(ctx.model, Delivery(embeds=found, mask=mask), ids.shape[0])


METHOD = Method(
    message, embedding_bytes, order=60, latent="own", prepare=prepare, default=False, wire=False
)
