"""Which tokens of two tokenizers stand for the same characters; numpy alone, no jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
"""The characters of a token: the first, and the one after the last."""


def overlaps(own: Sequence[Span], other: Sequence[Span]) -> NDArray[np.int32]:
    """For every token of one tokenizer, the other's tokens that share a character with it.

    Both have to be in the order of the text. Tokens that stand for bytes of the same character have
    the same span, and share it.

    Args:
        own: spans of n tokens.
        other: spans of the other tokenizer's tokens, of the same text.

    Returns:
        [n, 2] the first token of the other that overlaps, and the one after the last; equal where
        none does (a token without characters, such as BOS).
    """
    found = np.zeros((len(own), 2), np.int32)
    if not len(own) or not len(other):
        return found
    mine, theirs = np.asarray(own, np.int64), np.asarray(other, np.int64)
    # Of tokens in order, those that end after my first character, and begin before my last.
    first = np.searchsorted(np.maximum.accumulate(theirs[:, 1]), mine[:, 0], side="right")
    stop = np.searchsorted(np.maximum.accumulate(theirs[:, 0]), mine[:, 1], side="left")
    empty = (mine[:, 0] >= mine[:, 1]) | (first >= stop)
    found[:, 0] = np.where(empty, 0, first)
    found[:, 1] = np.where(empty, 0, stop)
    return found
