"""Discrete codes of a latent: what a bottleneck sows about them, and how many are in use.

A bottleneck with codes sows `codes` [B, M, n] int32 (n codes in a slot; -1 where a slot is masked)
and `counts` [B, n, L] int32, the number of a row's slots that have each value of each code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.scipy.special import entr

from lw_jax.layers.intermediates import Intermediates
from lw_jax.types import Array

_PRIMES = (2654435761, 2246822519)  # of xxHash: odd, so that no bit is lost
_START = (374761393, 668265263)


def masked_codes(codes: Array, mask: Array) -> Array:
    """Codes [B, M, n] with -1 where mask [B, M] is False."""
    return jnp.where(mask[..., None], codes, -1).astype(jnp.int32)


def counts_of(codes: Array, levels: tuple[int, ...]) -> Array:
    """How often each value of each code occurs in a row.

    Args:
        codes: [B, M, n].
        levels: number of values of each of the n codes.

    Returns:
        [B, n, L] int32, where L is the largest of the levels; -1 for values that a code with fewer
        levels does not have.
    """
    size = max(levels)
    # The code of a masked slot is set beyond the end, so that it is not counted.
    at = jnp.where(codes < 0, size, codes)
    one = jax.vmap(lambda c: jnp.zeros(size, jnp.int32).at[c].add(1, mode="drop"), in_axes=1)
    exists = jnp.arange(size)[None, None, :] < jnp.asarray(levels)[None, :, None]
    return jnp.where(exists, jax.vmap(one)(at), -1)


def distinct(codes: Array) -> Array:
    """Number of different code tuples in the real slots of codes [B, M, n], int32 scalar.

    Tuples are compared by 64 bits of hash. Among a million tuples, the chance that two different
    ones have the same hash is about 1 in 10^7.
    """
    rows = rearrange(codes, "b m n -> (b m) n")
    real = rows[:, 0] >= 0
    marks = []
    for prime, start in zip(_PRIMES, _START, strict=True):
        mark = jnp.full(rows.shape[:1], start, jnp.uint32)
        for column in rows.T.astype(jnp.uint32):
            mark = (mark ^ column) * jnp.uint32(prime)
            mark = mark ^ (mark >> 15)
        marks.append(mark)
    last, first, second = jax.lax.sort((~real, *marks), num_keys=3)
    new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    new = jnp.concatenate([jnp.ones(1, bool), new])
    return jnp.sum(new & ~last)


def usage(intermediates: Intermediates) -> dict[str, Array]:
    """How much of its codes a batch uses; {} if the bottleneck has none.

    Args:
        intermediates: what a bridge sowed, by part and name.

    Returns:
        float32 scalars. `usage`: share of a code's values that occur, mean over the n codes.
        `perplexity`: e^entropy of a code's values, mean over the n codes; 1 is collapse, the number
        of values is even use. `distinct`: different code tuples divided by the number of slots; 1 /
        B if all rows have the same slots, 1 / (B M) if all slots are alike. `alive`, if the
        bottleneck sows it: share of the codes that recent batches used.
    """
    held = intermediates.get("bottleneck", {})
    if "counts" not in held:
        return {}
    counts, codes = held["counts"], held["codes"]
    exists = counts[0] >= 0
    total = jnp.sum(jnp.maximum(counts, 0), axis=0).astype(jnp.float32)
    used = jnp.sum(total > 0, axis=-1) / jnp.sum(exists, axis=-1)
    shares = total / jnp.maximum(1.0, jnp.sum(total, axis=-1, keepdims=True))
    slots = jnp.maximum(1, jnp.sum(codes[..., 0] >= 0))
    found = {
        "usage": jnp.mean(used),
        "perplexity": jnp.mean(jnp.exp(jnp.sum(entr(shares), axis=-1))),
        "distinct": distinct(codes) / slots,
    }
    return found | ({"alive": held["alive"]} if "alive" in held else {})
