"""Several deliveries to one receiver, one after another: a message of several parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from lw_jax.types import KV, Array, Blocks, Delivery, Edits

_Beside = Callable[..., Array]


def advance_of(delivery: Delivery, soft: Array) -> Array:
    """[B] positions that a message takes: what its reader says, else the larger of its soft tokens
    and its prefix columns.

    Args:
        delivery: of B rows.
        soft: [B] its soft tokens.
    """
    if delivery.advance is not None:
        return delivery.advance
    if delivery.kv is None:
        return soft
    return jnp.maximum(soft, delivery.kv.mask.sum(axis=1, dtype=jnp.int32))


def joined(delivery: Delivery, parts: int, real: Array) -> Delivery:
    """The deliveries of the parts of B messages as one delivery each.

    Soft tokens and prefix columns of a part come after those of the part before it, and their
    positions go on from its end. Blocks read the slots of all parts: arrays of `Blocks.given` are
    laid side by side along their second axis. LoRA, which does not depend on the latent, stays.

    Args:
        delivery: of B * parts rows: the parts of the first message, those of the second, ...
        parts: of each message.
        real: [B * parts] bool, False for parts that only fill a message up; they deliver nothing.
    """
    if parts == 1:
        return delivery
    soft, mask = jnp.zeros_like(real, jnp.int32), None
    if delivery.embeds is not None:
        shape = delivery.embeds.shape[:2]
        mask = jnp.ones(shape, bool) if delivery.mask is None else delivery.mask
        mask &= real[:, None]
        soft = mask.sum(axis=1, dtype=jnp.int32)
    kv = delivery.kv
    if kv is not None:
        kv = KV(kv.k, kv.v, kv.mask & real[:, None], kv.positions, kv.layers)
    advance = advance_of(replace(delivery, kv=kv), soft)
    advance = jnp.where(real, advance, jnp.zeros((), advance.dtype)).reshape(-1, parts)
    begin = (jnp.cumsum(advance, axis=1) - advance).reshape(-1, 1)  # [B * parts, 1]

    def beside(x: Array, axis: int = 0) -> Array:
        """x [..., B * parts, M, ...] -> [..., B, parts * M, ...], its rows at `axis`."""
        rows, size = x.shape[axis] // parts, x.shape[axis + 1]
        return x.reshape(*x.shape[:axis], rows, parts * size, *x.shape[axis + 2 :])

    edits, embeds, positions, order = delivery.edits, delivery.embeds, None, None
    if embeds is not None and mask is not None:
        index = jnp.arange(embeds.shape[1], dtype=jnp.float32)[None]
        own = delivery.positions if delivery.positions is not None else index
        order = jnp.argsort(~beside(mask), axis=1, stable=True)  # real soft tokens first
        positions = jnp.take_along_axis(beside(own + begin), order, axis=1)
        embeds = jnp.take_along_axis(beside(embeds), order[..., None], axis=1)
        mask = jnp.take_along_axis(beside(mask), order, axis=1)
    if kv is not None:
        mask_of, at = beside(kv.mask), beside(kv.positions + begin)
        kv = KV(beside(kv.k, 1), beside(kv.v, 1), mask_of, at, kv.layers)
    if edits is not None:
        edits = Edits(
            edits.lora,
            _blocks(edits.blocks, parts, real, beside),
            *(_deltas(x, order, beside) for x in (edits.k_delta, edits.v_delta)),
        )
    return Delivery(embeds, mask, positions, kv, advance.sum(axis=1), edits, delivery.prompt)


def _blocks(blocks: Blocks | None, parts: int, real: Array, beside: _Beside) -> Blocks | None:
    if blocks is None:
        return None
    keys = blocks.keys
    if keys is not None:
        keys = jnp.where(real, keys, 0).reshape(-1, parts).sum(axis=1)
    return replace(blocks, given=jax.tree.map(beside, blocks.given), keys=keys)


def _deltas(x: Array | None, order: Array | None, beside: _Beside) -> Array | None:
    """Deltas [L, B * parts, M, K, h] in the order of their soft tokens."""
    if x is None:
        return None
    assert order is not None
    return jnp.take_along_axis(beside(x, 1), order[None, :, :, None, None], axis=2)
