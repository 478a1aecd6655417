"""Slot statistics: soft tokens beside the receiver's own embeddings (docs/design.md section 8).

Effective rank is e^entropy of the singular values' shares (Roy and Vetterli 2007): 1 where all
vectors lie on one line, their number where they are orthogonal and as long as each other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from lw_jax.models.head import LOGITS_AT_ONCE
from lw_jax.types import Array

_SMALL = 1e-12


def statistics(slots: Array, mask: Array) -> dict[str, Array]:
    """How the slots [B, M, D] of B texts lie to each other, where mask [B, M].

    Returns:
        float32 scalars. `within_cosine`: mean cosine of two slots of one text, over texts that have
        two; `within_rank`: effective rank of a text's slots; `between_cosine`: mean cosine of two
        texts' slots, flattened; `between_rank`: effective rank of those B vectors; `count`: slots
        of a text. What has no pair is 0.
    """
    x = jnp.where(mask[..., None], slots.astype(jnp.float32), 0.0)
    count = jnp.sum(mask, axis=1).astype(jnp.float32)
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _SMALL)
    # The sum of all cosines of a text, less each slot's own, over the ordered pairs.
    own = jnp.sum(jnp.square(unit), axis=(1, 2))
    cosines = jnp.sum(jnp.square(jnp.sum(unit, axis=1)), axis=-1) - own
    paired = count >= 2
    within = jnp.where(paired, cosines / jnp.maximum(1.0, count * (count - 1)), 0.0)
    flat = x.reshape(x.shape[0], -1)
    texts = flat / jnp.maximum(jnp.linalg.norm(flat, axis=-1, keepdims=True), _SMALL)
    alike = jnp.square(jnp.linalg.norm(jnp.sum(texts, axis=0))) - jnp.sum(jnp.square(texts))
    rows = x.shape[0]
    return {
        "within_cosine": jnp.sum(within) / jnp.maximum(1, jnp.sum(paired)),
        "within_rank": jnp.mean(_rank(x)),
        "between_cosine": alike / max(1, rows * (rows - 1)),
        "between_rank": _rank(flat),
        "count": jnp.mean(count),
    }


def against_table(slots: Array, mask: Array, table: Array, embed_rms: float) -> dict[str, Array]:
    """How the slots [B, M, D] lie to the receiver's embedding table [V, D].

    Returns:
        float32 scalars over the slots of mask [B, M]. `rms`: of their entries; `rms_ratio`: over
        embed_rms, that of embeddings of real text; `nearest_cosine`: mean over the slots of the
        largest cosine with a row of the table.
    """
    x = jnp.where(mask[..., None], slots.astype(jnp.float32), 0.0)
    total = jnp.maximum(1, jnp.sum(mask))
    rms = jnp.sqrt(jnp.sum(jnp.square(x)) / (total * x.shape[-1]))
    nearest = nearest_cosine(x.reshape(-1, x.shape[-1]), table)
    mean = jnp.sum(jnp.where(mask.reshape(-1), nearest, 0.0)) / total
    return {"rms": rms, "rms_ratio": rms / embed_rms, "nearest_cosine": mean}


def nearest_cosine(x: Array, table: Array) -> Array:
    """[N] largest cosine of x [N, D] with a row of table [V, D], some rows of x at a time."""
    lengths = jnp.sqrt(jnp.sum(jnp.square(table.astype(jnp.float32)), axis=-1))
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _SMALL)

    def one(row: Array) -> Array:
        z = jnp.einsum(
            "vd,d->v", table, row.astype(table.dtype), preferred_element_type=jnp.float32
        )
        return jnp.max(z / jnp.maximum(lengths, _SMALL))

    at_once = max(1, LOGITS_AT_ONCE // table.shape[0])
    return jax.lax.map(one, unit, batch_size=min(at_once, x.shape[0]))


def _rank(x: Array) -> Array:
    """Effective rank of the vectors x [..., N, D], through their N x N products."""
    products = jnp.einsum("...nd,...md->...nm", x, x)
    values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(products), 0.0))
    shares = values / jnp.maximum(jnp.sum(values, axis=-1, keepdims=True), _SMALL)
    return jnp.exp(jnp.sum(entr(shares), axis=-1))
