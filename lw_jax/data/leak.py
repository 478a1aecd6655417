"""Finds what training must not contain: held-out words, evaluation rows, near copies of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from lw_jax.data.example import Example
from lw_jax.data.overlap import RunIndex, normalised
from lw_jax.data.stream import Groups
from lw_jax.data.words import open_split

_WORD = re.compile(r"[A-Za-z]+")
LOOKED_AT = 100_000
"""Contexts of each side that are compared, spread evenly over all; 50,000 take half a second."""
GENERATED = 256
"""Rows that are generated and compared; their words are divided among the splits by a hash."""


@dataclass(frozen=True)
class Overlap:
    """Evaluation rows that are training rows as well, white space and case aside.

    Attributes:
        contexts: evaluation contexts that a training row has.
        of: evaluation contexts that were looked at.
        asked: evaluation questions that a training row asks of the same context.
        example: the first such context.
        where: id of its training row, the file's own if it has one.
    """

    contexts: int
    of: int
    asked: int
    example: str
    where: str

    def __str__(self) -> str:
        text = self.example if len(self.example) <= 60 else self.example[:57] + "..."
        return (
            f"{self.contexts} of {self.of} contexts, {self.asked} with the same question; "
            f"{text!r} is row {self.where}"
        )


def overlap(training: Groups[Any], evaluation: Groups[Any]) -> Overlap | None:
    """Evaluation rows that are training rows as well; None: there are none.

    Of rows that are generated when they are needed the first are compared; rows that are rewritten
    from a file are compared as the file has them.

    Args:
        training: training rows.
        evaluation: evaluation rows.
    """
    asked: dict[int, set[int]] = {}
    texts: dict[int, str] = {}
    for group in _some(evaluation):
        context = _key(group[0].context)
        texts.setdefault(context, group[0].context)
        asked.setdefault(context, set()).update(_key(e.question) for e in group)
    found: dict[int, str] = {}
    again: set[tuple[int, int]] = set()
    for group in _some(training):
        context = _key(group[0].context)
        if context in asked:
            found.setdefault(context, group[0].row_id or group[0].id)
            again |= {(context, q) for e in group if (q := _key(e.question)) in asked[context]}
    if not found:
        return None
    first, where = next(iter(found.items()))
    return Overlap(len(found), len(asked), len(again), texts[first], where)


def _key(text: str) -> int:
    """A text's hash in this process, white space, case and forms of characters aside."""
    return hash(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def _some(rows: Groups[Any]) -> Iterator[Any]:
    """Contexts held in memory, at most `LOOKED_AT` of them; the first of those generated."""
    held = getattr(rows, "groups", None)
    if held is None:
        return (rows[i] for i in range(min(len(rows), GENERATED)))
    return islice(held, 0, None, max(1, -(-len(held) // LOOKED_AT)))


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
