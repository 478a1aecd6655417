"""Slot statistics: soft tokens beside the receiver's own embeddings (docs/design.md section 8).

Effective rank is e^entropy of the singular values' shares (Roy and Vetterli 2007): 1 where all
vectors lie on one line, their number where they are orthogonal and as long as each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.models.head import LOGITS_AT_ONCE
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array

NEAREST = "nearest"
WITHIN, BETWEEN = "within_products", "between_products"
_SMALL = 1e-12


def statistics(slots: Array, mask: Array) -> dict[str, Array]:
    """How the slots [B, M, D] of B texts lie to each other, where mask [B, M].

    Returns:
        float32 scalars. `within_cosine`: mean cosine of two slots of one text, over texts that have
        two; `between_cosine`: mean cosine of two texts' slots, flattened; `variance`: of an entry
        over the texts that have its slot, mean over all entries; `count`: slots of a text. What has
        no pair is 0. And products of the slots of a text, `within_products` [B, M, M], and
        of the texts' flattened slots, `between_products` [B, B], whose ranks `ranked` gives.
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
    held = jnp.maximum(1, jnp.sum(mask, axis=0)).astype(jnp.float32)[:, None]  # texts, by slot
    mean = jnp.sum(x, axis=0) / held
    spread = jnp.where(mask[..., None], jnp.square(x - mean[None]), 0.0)
    there = jnp.maximum(1, jnp.sum(jnp.any(mask, axis=0)))
    return {
        "within_cosine": jnp.sum(within) / jnp.maximum(1, jnp.sum(paired)),
        "between_cosine": alike / max(1, rows * (rows - 1)),
        "variance": jnp.sum(jnp.sum(spread, axis=0) / held) / (there * x.shape[-1]),
        "count": jnp.mean(count),
        WITHIN: jnp.einsum("bnd,bmd->bnm", x, x),
        BETWEEN: flat @ flat.T,
    }


def against_table(slots: Array, mask: Array, table: Array, embed_rms: float) -> dict[str, Array]:
    """How the slots [B, M, D] lie to the receiver's embedding table [V, D].

    Returns:
        float32 scalars over the slots of mask [B, M]. `rms`: of their entries; `rms_ratio`: over
        embed_rms, that of embeddings of real text; `nearest_cosine`: mean over the slots of the
        largest cosine with a row of the table. And `nearest` [B, M] int32, those rows, -1 where a
        slot is not real.
    """
    x = jnp.where(mask[..., None], slots.astype(jnp.float32), 0.0)
    total = jnp.maximum(1, jnp.sum(mask))
    rms = jnp.sqrt(jnp.sum(jnp.square(x)) / (total * x.shape[-1]))
    cosines, rows = nearest(x.reshape(-1, x.shape[-1]), table)
    mean = jnp.sum(jnp.where(mask.reshape(-1), cosines, 0.0)) / total
    ids = jnp.where(mask, rows.reshape(mask.shape), -1)
    return {"rms": rms, "rms_ratio": rms / embed_rms, "nearest_cosine": mean, NEAREST: ids}


def nearest(x: Array, table: Array) -> tuple[Array, Array]:
    """The largest cosine [N] of x [N, D] with a row of table [V, D], and that row [N] int32, some
    rows of x at a time."""
    lengths = jnp.sqrt(jnp.sum(jnp.square(table.astype(jnp.float32)), axis=-1))
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _SMALL)

    def one(row: Array) -> tuple[Array, Array]:
        z = jnp.einsum(
            "vd,d->v", table, row.astype(table.dtype), preferred_element_type=jnp.float32
        )
        cosines = z / jnp.maximum(lengths, _SMALL)
        return jnp.max(cosines), jnp.argmax(cosines).astype(jnp.int32)

    at_once = max(1, LOGITS_AT_ONCE // table.shape[0])
    found: tuple[Array, Array] = jax.lax.map(one, unit, batch_size=min(at_once, x.shape[0]))
    return found


def spelled(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """What the rows of the vocabulary that are nearest to each text's soft tokens spell.

    Args:
        ids: [B, M] int32, -1 where a slot is not real.
        tokenizer: the receiver's.
    """
    decode = tokenizer.backend.decode
    return [decode([i for i in row.tolist() if i >= 0], skip_special_tokens=False) for row in ids]


def ranked(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What was seen of slots, on the host, with `within_rank`, effective rank of a text's slots
    (mean), and `between_rank`, that of the texts' flattened slots, in the place of their products.

    By NumPy, since eigenvalues of a batch on several devices of one CPU can wait for each other
    without end there: jaxlib 0.10's kernels occupy all threads of the pool that they wait for.
    """
    found = dict(seen)
    within, between = found.pop(WITHIN), found.pop(BETWEEN)
    return found | {
        "within_rank": np.float32(np.mean(_rank(within))),
        "between_rank": np.float32(_rank(between)),
    }


def _rank(products: np.ndarray) -> np.ndarray:
    """Effective rank of N vectors, of their products [..., N, N]."""
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))
    shares = values / np.maximum(np.sum(values, axis=-1, keepdims=True), _SMALL)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    rank: np.ndarray = np.exp(-np.sum(shares * logs, axis=-1))
    return rank
