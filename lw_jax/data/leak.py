"""Finds what training must not contain: held-out words, evaluation rows, near copies of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from lw_jax.data.example import Example
from lw_jax.data.overlap import RunIndex, normalised
from lw_jax.data.stream import Groups
from lw_jax.data.words import open_split

_WORD = re.compile(r"[A-Za-z]+")


class Leak(NamedTuple):
    """Something of the evaluation in the training rows.

    Attributes:
        kind: `word` (an open word of another split), `row` (a context of the evaluation), `run` (a
            run of words of one).
        where: id of the training row.
        what: the word, context or run.
    """

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: held-out {self.kind} {self.what!r}"


def find(
    training: Groups[Any], evaluation: Groups[Any] | None, limit: int | None = None, run: int = 13
) -> list[Leak]:
    """Leaks into the training rows.

    Open words are checked by their hash, which covers every possible evaluation. Contexts and runs
    are compared with `evaluation`.

    Args:
        training: training rows, of a data set or of the pretraining mixture.
        evaluation: evaluation rows; None: only words are checked.
        limit: number of contexts of each to check, from the first on; None: all.
        run: words in a run.
    """
    found = [leak for example in examples(training, limit) for leak in held_out_words(example)]
    if evaluation is None:
        return found
    contexts = {normalised(example.context) for example in examples(evaluation, limit)}
    index = RunIndex(contexts, run)
    for example in examples(training, limit):
        if normalised(example.context) in contexts:
            found.append(Leak("row", example.id, example.context))
        elif (shared := index.shared(example.context)) is not None:
            found.append(Leak("run", example.id, shared))
    return found


def held_out_words(example: Example) -> Iterator[Leak]:
    """The open words in an example's texts that training may not contain."""
    text = " ".join((example.context, example.question, *example.answers))
    for word in dict.fromkeys(_WORD.findall(text)):
        if open_split(word) not in (None, "train"):
            yield Leak("word", example.id, word)


def examples(rows: Groups[Any], limit: int | None = None) -> Iterator[Example]:
    """The examples of rows, even if the rows hold them together with an anchor."""
    for index in islice(range(len(rows)), limit):
        for item in rows[index]:
            yield item if isinstance(item, Example) else item.example
