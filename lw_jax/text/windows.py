"""A long text in windows that a sender can read, cut at the ends of sentences. No jax here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

_SENTENCE = re.compile(r"\S.*?(?:[.!?…][\"')\]”’]*(?=\s)|\n|$)\s*", re.DOTALL)
_WORD = re.compile(r"\S+\s*")


def windows(pieces: Iterable[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """The windows of a text, one after another; put together they are the text.

    Each is as many whole sentences as fit. A sentence that does not fit is cut between words, and a
    word that does not between characters. Where a text ends where one of its windows does, the
    windows of that text and another one are those of both together.

    Args:
        pieces: the text, in pieces of any lengths; where it is cut into them does not matter.
        fits: whether a window can be read; a single character always is.
    """
    window = ""
    for unit in _units(pieces, fits):
        if window and not fits(window + unit):
            yield window
            window = ""
        window += unit
    if window:
        yield window


def _units(pieces: Iterable[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """The text's sentences, or parts of those that do not fit."""
    for sentence in _sentences(pieces):
        if fits(sentence):
            yield sentence
            continue
        for word in _found(_WORD, sentence):
            while not fits(word):
                most = _most(word, fits)
                yield word[:most]
                word = word[most:]
            yield word


def _sentences(pieces: Iterable[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        # the last sentence may go on in the next piece
        *whole, held = _found(_SENTENCE, held) or [""]
        yield from whole
    yield from filter(None, [held])


def _found(pattern: re.Pattern[str], text: str) -> list[str]:
    """The matches of a pattern, the first with the white space before it."""
    found = pattern.findall(text)
    lead = text[: len(text) - sum(map(len, found))]
    return [lead + found[0], *found[1:]] if found else [text]


def _most(text: str, fits: Callable[[str], bool]) -> int:
    """How many of a text's first characters fit, at least one."""
    low, high = 1, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle)
    return low
