"""Texts that share a run of words: how contamination of training by evaluation is found."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[a-z0-9]+")


def normalised(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(WORD.findall(text.lower()))


def runs(text: str, n: int) -> set[str]:
    """Every run of n words of a text; a shorter text is its own run."""
    words = WORD.findall(text.lower())
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} - {""}


class RunIndex:
    """Runs of n words of some texts, by which texts that share one are found."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        self.found: set[str] = set()
        for text in texts:
            self.found |= runs(text, n)

    def shared(self, text: str) -> str | None:
        """A run that a text shares with the indexed ones (the first in sorted order), or None."""
        return min(runs(text, self.n) & self.found, default=None)
