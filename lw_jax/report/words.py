"""Answers beside the gold one, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Kind = Literal["same", "extra", "missing"]
MOST = 400
"""Words of an answer that are compared."""


class Piece(NamedTuple):
    """Some words of an answer: `same` as in gold, `extra` to it, or `missing` in the answer."""

    text: str
    kind: Kind


def marked(answer: str, golds: Sequence[str]) -> list[Piece]:
    """An answer in pieces, beside the gold answer that it is nearest to."""
    said = answer.split()[:MOST]
    best = max(golds, key=lambda gold: _matcher(said, gold.split()[:MOST]).ratio(), default="")
    gold = best.split()[:MOST]
    found: list[Piece] = []
    for what, a, b, c, d in _matcher(said, gold).get_opcodes():
        if what == "equal":
            found.append(Piece(" ".join(said[a:b]), "same"))
            continue
        if b > a:
            found.append(Piece(" ".join(said[a:b]), "extra"))
        if d > c:
            found.append(Piece(" ".join(gold[c:d]), "missing"))
    return found


def _matcher(said: Sequence[str], gold: Sequence[str]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, [_plain(w) for w in said], [_plain(w) for w in gold], False)


def _plain(word: str) -> str:
    return word.casefold().strip(".,;:!?'\"()")
