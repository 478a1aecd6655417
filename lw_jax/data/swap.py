"""Passages whose names and numbers are others, the same ones in their questions and answers.

A passage that is read many times is learned by heart; one in which every name and number is drawn
anew has to be read (entity replacement: Longpre et al. 2021, arXiv:2109.05052).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from lw_jax.data.example import Example

_WORD = re.compile(r"\d+(?:[,.]\d+)*|[A-Za-z][A-Za-z'’]*")
SWAPPED_NAMES, SWAPPED_NUMBERS = 0.7, 0.8
"""Shares of the different names and numbers of a passage that are replaced."""


def swapped(
    group: Sequence[Example], names: frozenset[str], pool: Sequence[str], rng: random.Random
) -> tuple[Example, ...]:
    """The same passage and questions with other names and numbers.

    A word that is a name is one everywhere; an answer stays what stands in the passage.

    Args:
        group: questions on one passage.
        names: the words that are names.
        pool: what they are replaced by.
        rng: random draws.
    """
    mapping: dict[str, str] = {}

    def other(found: re.Match[str]) -> str:
        word = found[0]
        if word not in mapping:
            mapping[word] = word
            if word[0].isdigit():
                if rng.random() < SWAPPED_NUMBERS:
                    mapping[word] = new_number(word, rng)
            elif word in names and rng.random() < SWAPPED_NAMES:
                mapping[word] = pool[int(rng.random() * len(pool))]
        return mapping[word]

    context = _WORD.sub(other, group[0].context)
    return tuple(
        replace(
            one,
            context=context,
            question=_WORD.sub(other, one.question),
            answers=tuple(_WORD.sub(other, answer) for answer in one.answers),
        )
        for one in group
    )


def new_number(old: str, rng: random.Random) -> str:
    """A number with the same digits' places; a year stays one of its century or the next two."""
    if len(old) == 4 and old.isdigit() and 1000 <= int(old) < 2100:
        return str(min(2099, (int(old) // 100 + rng.randrange(-1, 2)) * 100 + rng.randrange(100)))
    first = True
    made = []
    for digit in old:
        if not digit.isdigit():
            made.append(digit)
            continue
        lowest = 1 if first and digit != "0" else 0
        made.append(str(rng.randrange(lowest, 10)))
        first = False
    return "".join(made)
