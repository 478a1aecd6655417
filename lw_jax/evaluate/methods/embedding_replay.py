"""`embedding_replay_<change>`: the text's own embeddings, changed, as soft tokens.

See docs/design.md section 8.

A reader's soft tokens are unlike embeddings in loudness, in distribution, or in lying beside the
table's rows. Each change does one of these to the text's own embeddings, and nothing else: what the
receiver then still reads is what that unlikeness costs.

| name | an embedding becomes |
|---|---|
| `rms` | as loud as the receiver's embeddings of real text are on average |
| `scale_F` | F times itself (the earlier systems: 0.5 to 1.5) |
| `batch` | whitened by the batch's mean and deviation per channel, coloured by the table's |
| `nearest_K` | the mean of the K rows of the table with the largest cosine to it |
| `offset_F` | the text's mean plus F times its difference from that (anchor + offset) |
| `codebook_T` | a mixture of all rows, softmax of their cosines to it over the temperature T |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.evaluate.methods.base import Batch, EvalContext, Family, Method, embedding_bytes
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.head import LOGITS_AT_ONCE
from lw_jax.receiver.answer import Message, alone
from lw_jax.types import Array, Delivery

Change = Callable[[Array, Array, Array, float], Array]
"""(embeddings [N, T, D] float32, mask [N, T], table [V, D], RMS of real embeddings) -> the same."""

_SMALL = 1e-6


def change(name: str) -> Change:
    """The change of that name.

    Raises:
        UserError: it is none of the above, or its number is missing or out of range.
    """
    kind, _, number = name.partition("_")
    if kind in _PLAIN and not number:
        return _PLAIN[kind]
    if kind not in _NUMBERED:
        known = ", ".join([*_PLAIN, *(f"{kind}_<number>" for kind in _NUMBERED)])
        raise UserError(f"replay: unknown {name!r}; one of {known}")
    try:
        value = float(number)
    except ValueError as error:
        raise UserError(f"replay: {name!r} needs a number, as in {kind}_1") from error
    if value <= 0 or (kind == "nearest" and value != int(value)):
        whole = "a whole number" if kind == "nearest" else "a number"
        raise UserError(f"replay: {name!r} needs {whole} above 0")
    made = _NUMBERED[kind]
    return lambda x, mask, table, rms: made(value, x, mask, table)


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
        table, rms = ctx.model.params["embed"], ctx.bridge.dims.receivers[ctx.receiver].embed_rms
        changed = how(embeds.astype(jnp.float32), mask, table, rms).astype(embeds.dtype)
        return alone(ctx.model, Delivery(embeds=changed, mask=mask), ids.shape[0])

    return Method(message, embedding_bytes, order=200, default=False)


FAMILY = Family(
    "embedding_replay_",
    replayed,
    ends=", ".join([*_PLAIN, *(f"{kind}_<number>" for kind in _NUMBERED)]),
)
