"""GSM8K problems with other names and other numbers, so that they cannot be learned by heart."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lw_jax.data.words import open_split, open_word

_PIECE = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?|[A-Za-z]+)")
_WORD = re.compile(r"[A-Za-z]+")
_SENTENCE = re.compile(r"(?<=[.?!]) (?=[A-Z0-9$])")

# Capitalised, but not the name of a person or thing: not replaced.
_KEPT = frozenset(
    """I A AM PM TV DVD CD Mr Mrs Ms Dr St January February March April May June July August
    September October November December Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    Mondays Tuesdays Wednesdays Thursdays Fridays Saturdays Sundays""".split()
)


class Piece(NamedTuple):
    """A piece of text.

    Attributes:
        text: the text.
        kind: `literal`, or `name` or `number`, which may be replaced.
    """

    text: str
    kind: str  # "literal", "name", "number"


def proper_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Capitalised words that the texts never write in lower case, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return tuple(
        word
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if word[0].isupper()
        and word[1:].islower()
        and len(word) > 2
        and word not in _KEPT
        and word.lower() not in counts
    )


def pieces(text: str, names: frozenset[str]) -> tuple[Piece, ...]:
    """A text cut at its names and numbers; joined, the pieces are the text."""
    made: list[Piece] = []
    for part in _PIECE.split(text):
        kind = "number" if part[:1].isdigit() else "name" if part in names else "literal"
        if kind == "literal" and made and made[-1].kind == "literal":
            made[-1] = Piece(made[-1].text + part, kind)
        elif part:
            made.append(Piece(part, kind))
    return tuple(made)


def rewrite(
    text: tuple[Piece, ...],
    mapping: dict[str, str],
    names: tuple[str, ...],
    rng: random.Random,
    numbers: bool,
) -> str:
    """The text with its names (and numbers) replaced, each always by the same one.

    Args:
        text: the text in pieces.
        mapping: replacements made so far, so that several texts can agree.
        names: names to choose from.
        rng: random draws.
        numbers: whether numbers are replaced, too.
    """
    made = []
    for piece in text:
        if piece.kind == "literal" or (piece.kind == "number" and not numbers):
            made.append(piece.text)
            continue
        if piece.text not in mapping:
            new = new_name(names, rng) if piece.kind == "name" else new_number(piece.text, rng)
            mapping[piece.text] = new
        made.append(mapping[piece.text])
    return "".join(made)


def new_name(names: tuple[str, ...], rng: random.Random) -> str:
    """A real name, two real names joined, or a word of syllables; never a held-out open word."""
    while True:
        kind = rng.random()
        if kind < 0.4:
            name = names[int(rng.random() * len(names))]
        elif kind < 0.7:
            first, second = (names[int(rng.random() * len(names))] for _ in range(2))
            name = first[: 2 + int(rng.random() * 3)] + second[-2 - int(rng.random() * 3) :].lower()
        else:
            name = open_word("surname" if kind < 0.85 else "city", "train", rng)
        if open_split(name) in (None, "train"):
            return name


def new_number(old: str, rng: random.Random) -> str:
    """A number in the style of `old`: same decimals, same commas, about the same length."""
    whole, _, decimals = old.replace(",", "").partition(".")
    length = len(whole) if rng.random() < 0.6 else 1 + int(rng.random() * 4)
    low = 10 ** (length - 1)
    value = low + int(rng.random() * (10 * low - low)) if length < 5 else int(rng.random() * 10**5)
    made = f"{value:,}" if "," in old or (length > 3 and rng.random() < 0.3) else str(value)
    return made + (f".{''.join(str(int(rng.random() * 10)) for _ in decimals)}" if decimals else "")


def excerpt(text: str, rng: random.Random) -> str:
    """Some consecutive sentences of a text, at least one."""
    sentences = _SENTENCE.split(text)
    first = int(rng.random() * len(sentences))
    last = first + 1 + int(rng.random() * (len(sentences) - first))
    return " ".join(sentences[first:last])
