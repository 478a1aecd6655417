"""Changes of soft tokens: of a text's own embeddings (`embedding_replay_<change>`), or of what a
reader delivers (`layout.transform`). `lw_jax.text.transform` names and explains them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp

from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.head import LOGITS_AT_ONCE
from lw_jax.models.split import embedding_table
from lw_jax.text.layout import Prompt
from lw_jax.text.transform import parsed
from lw_jax.types import Array, Delivery

Change = Callable[[Array, Array, Array, float], Array]
"""(vectors [N, T, D] float32, mask [N, T], table [V, D], RMS of real embeddings) -> the same."""

_SMALL = 1e-6


@cache
def change(name: str, where: str = "replay") -> Change:
    """The change of that name.

    Args:
        name: see `lw_jax.text.transform`.
        where: the option that has it, for messages.

    Raises:
        UserError: there is none, or its number is missing or out of range.
    """
    kind, value = parsed(name, where)
    if value is None:
        return _PLAIN[kind]
    number = value
    if kind == "rms":
        return lambda x, mask, table, rms: _rms(x, mask, table, number * rms)
    made = _NUMBERED[kind]
    return lambda x, mask, table, rms: made(number, x, mask, table)


def transformed(
    model: FrozenDecoder, prompt: Prompt, delivery: Delivery, embed_rms: float
) -> Delivery:
    """A reader's delivery, with its soft tokens changed as the layout says, if it does.

    What picks rows of the table (`nearest_K`) passes its gradient straight through to the soft
    token. `batch` whitens by the rows that are read at once.

    Args:
        model: the receiver.
        prompt: what the layout puts around its message.
        delivery: what its readers deliver.
        embed_rms: RMS of the receiver's embeddings of real text.
    """
    if prompt.transform is None or delivery.embeds is None:
        return delivery
    x = delivery.embeds.astype(jnp.float32)
    mask = jnp.ones(x.shape[:2], bool) if delivery.mask is None else delivery.mask
    how = change(prompt.transform, "layout.transform")
    found = how(x, mask, embedding_table(model.params), embed_rms)
    if parsed(prompt.transform, "layout.transform")[0] == "nearest":
        found = x + jax.lax.stop_gradient(found - x)
    embeds = jnp.where(mask[..., None], found, x).astype(delivery.embeds.dtype)
    return replace(delivery, embeds=embeds)


def _rms(x: Array, mask: Array, table: Array, rms: float) -> Array:
    return x * rms / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True)), _SMALL)


def _batch(x: Array, mask: Array, table: Array, rms: float) -> Array:
    mean, deviation = _moments(x.reshape(-1, x.shape[-1]), mask.reshape(-1))
    rows = table.astype(jnp.float32)
    to_mean, to_deviation = _moments(rows, jnp.ones(rows.shape[0], bool))
    return (x - mean) / jnp.maximum(deviation, _SMALL) * to_deviation + to_mean


def _moments(x: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and deviation [1, 1, D] of the rows of x [N, D] in mask [N]."""
    keep = mask[:, None].astype(jnp.float32)
    mean = jnp.sum(x * keep, 0, keepdims=True) / jnp.maximum(1, keep.sum())
    square = jnp.sum(jnp.square(x - mean) * keep, 0, keepdims=True) / jnp.maximum(1, keep.sum())
    return mean[None], jnp.sqrt(square)[None]


def _scale(factor: float, x: Array, mask: Array, table: Array) -> Array:
    return factor * x


def _offset(factor: float, x: Array, mask: Array, table: Array) -> Array:
    keep = mask[..., None].astype(jnp.float32)
    anchor = jnp.sum(x * keep, 1, keepdims=True) / jnp.maximum(1, keep.sum(1, keepdims=True))
    return anchor + factor * (x - anchor)


def _nearest(count: float, x: Array, mask: Array, table: Array) -> Array:
    def mix(cosines: Array) -> Array:
        _, rows = jax.lax.top_k(cosines, int(count))
        return jnp.mean(table[rows].astype(jnp.float32), axis=0)

    return _by_cosine(x, table, mix)


def _codebook(temperature: float, x: Array, mask: Array, table: Array) -> Array:
    def mix(cosines: Array) -> Array:
        share = jax.nn.softmax(cosines / temperature).astype(table.dtype)
        return jnp.einsum("v,vd->d", share, table, preferred_element_type=jnp.float32)

    return _by_cosine(x, table, mix)


def _by_cosine(x: Array, table: Array, mix: Callable[[Array], Array]) -> Array:
    """x [N, T, D] with `mix` of each vector's cosines [V] to the table, some vectors at a time."""
    lengths = jnp.maximum(jnp.linalg.norm(table.astype(jnp.float32), axis=-1), _SMALL)

    def one(vector: Array) -> Array:
        products = jnp.einsum(
            "vd,d->v", table, vector.astype(table.dtype), preferred_element_type=jnp.float32
        )
        return mix(products / lengths / jnp.maximum(jnp.linalg.norm(vector), _SMALL))

    flat = x.reshape(-1, x.shape[-1])
    at_once = max(1, LOGITS_AT_ONCE // table.shape[0])
    return jax.lax.map(one, flat, batch_size=min(at_once, flat.shape[0])).reshape(x.shape)


_PLAIN: dict[str, Change] = {"rms": _rms, "batch": _batch}
_NUMBERED = {"scale": _scale, "nearest": _nearest, "offset": _offset, "codebook": _codebook}
