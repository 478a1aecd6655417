"""Texts that share a run of words: finds training texts that contain evaluation texts."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[a-z0-9]+")
ANY_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words in lower case: letters a to z and digits; of other scripts, all letters."""
    found = WORD.findall(text.lower())
    if text.isascii():
        return found
    every = ANY_WORD.findall(text.lower())
    # Of a Chinese text only its numbers would be left, and all texts would seem to be alike.
    return every if 2 * sum(map(len, found)) < sum(map(len, every)) else found


def normalised(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(words_of(text))


def runs(text: str, n: int) -> set[str]:
    """Every run of n words in a text; a shorter text is its own run."""
    words = words_of(text)
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} - {""}


class RunIndex:
    """Finds texts that share a run of n words with the indexed ones."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        self.found: set[str] = set()
        for text in texts:
            self.found |= runs(text, n)

    def shared(self, text: str) -> str | None:
        """A run that a text shares with the indexed ones (the first in sorted order), or None."""
        return min(runs(text, self.n) & self.found, default=None)
