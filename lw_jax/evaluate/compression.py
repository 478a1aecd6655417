"""Honest compression: what the message costs in the receiver and on the wire (SPEC section 8).

Sizes are means per text. The text is counted as UTF-8 and as zlib of that, each text alone; the
latent as the bytes that `lw_jax.wire` writes: slots in each codec with scales, mask, span, header.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lw_jax import wire
from lw_jax.codecs import CODECS


@dataclass(frozen=True)
class Shape:
    """The latent's shape on the wire: M slots of width d, and which optional fields travel."""

    slots: int
    width: int
    owners: bool = False
    span: bool = True
    mark: bool = False

    def nbytes(self, codec: str) -> int:
        """Bytes of one latent."""
        return wire.nbytes(
            self.slots, self.width, codec, owners=self.owners, span=self.span, mark=self.mark
        )


def of_texts(texts: Sequence[str], shape: Shape) -> dict[str, Any]:
    """Texts against the latent that replaces each: characters per slot, bytes, bits a character.

    Args:
        texts: the messages, as the receiver would be given them.
    """
    characters = _mean(len(t) for t in texts)
    sizes = {
        "utf8": _mean(len(t.encode()) for t in texts),
        "zlib": _mean(len(zlib.compress(t.encode(), 9)) for t in texts),
        **{name: float(shape.nbytes(name)) for name in CODECS},
    }
    return {
        "characters": characters,
        "slots": shape.slots,
        "slot_width": shape.width,
        "characters_per_slot": characters / shape.slots,
        "bytes": sizes,
        "bits_per_character": {name: 8 * size / characters for name, size in sizes.items()},
    }


def of_columns(
    texts: Sequence[str], tokens: Sequence[int], columns: Sequence[int], cache_entries: int
) -> dict[str, Any]:
    """Receiver tokens of the texts against the columns that the message occupies instead.

    Args:
        texts, tokens, columns: one entry per text.
        cache_entries: K/V entries of a message, (key, value) pairs over all layers and heads.
    """
    characters, held = _mean(len(t) for t in texts), _mean(columns)
    return {
        "receiver_tokens": _mean(tokens),
        "columns": held,
        "tokens_per_column": _mean(tokens) / held,
        "characters_per_column": characters / held,
        "kv_entries": cache_entries,
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
