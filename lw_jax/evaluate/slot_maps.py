"""A few texts' slots to look at: which tokens of the source each reads, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from lw_jax.evaluate.methods.base import Batch, EvalContext
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, Latent

TEXTS = 4
"""Texts whose slots are looked at."""
MOST_SLOTS, MOST_TOKENS = 96, 512
"""Of a longer text the first of them are kept."""
DIGITS = 3


@partial(jax.jit)
def reads(ctx: EvalContext, batch: Batch) -> tuple[Latent, Array | None]:
    """The latents of a batch's first texts, and what each slot reads of the source.

    Args:
        ctx: its bridge; the receiver plays no part.
        batch: the texts, in the sources' tokens.

    Returns:
        As `lw_jax.bridge.bridge.Bridge.reads`, of `TEXTS` rows.
    """
    return ctx.bridge.reads(ctx.params, ctx.views(batch), TEXTS)


def maps(
    ids: list[str],
    batch: Mapping[str, np.ndarray],
    key: str,
    tokenizer: Tokenizer,
    latent: Latent,
    read: np.ndarray | None,
) -> list[dict[str, Any]]:
    """What `slot_maps.json` says of the first texts.

    Args:
        ids: of the rows.
        batch: their arrays on the host.
        key: of the view that the compressor reads.
        tokenizer: the view's.
        latent: on the host, [TEXTS, M, d].
        read: [TEXTS, M, T] attention; None: the compressor has none.

    Returns:
        For each text its `row`, its `tokens`, `cosine` of every two slots, `reads` of every slot
        (shares of the tokens, or None), and how many `slots` and `source_tokens` there are, of
        which no more than `MOST_SLOTS` and `MOST_TOKENS` are kept.
    """
    found = []
    for i, row in enumerate(ids[:TEXTS]):
        real = np.flatnonzero(np.asarray(latent.mask)[i])
        length = int(batch[f"{key}/lengths"][i])
        kept = real[:MOST_SLOTS]
        pieces = batch[f"{key}/ids"][i, : min(length, MOST_TOKENS)].tolist()
        slots = np.asarray(latent.slots, np.float32)[i, kept]
        unit = slots / np.maximum(np.linalg.norm(slots, axis=-1, keepdims=True), 1e-12)
        shares = None if read is None else np.asarray(read)[i, kept, : len(pieces)]
        decode = partial(tokenizer.backend.decode, skip_special_tokens=False)
        found.append(
            {
                "row": row,
                "slots": len(real),
                "source_tokens": length,
                "tokens": [decode([piece]) for piece in pieces],
                "cosine": _rounded(unit @ unit.T),
                "reads": None if shares is None else _rounded(shares),
            }
        )
    return found


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[round(float(x), DIGITS) for x in row] for row in values]
