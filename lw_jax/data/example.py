"""What every data set yields: contexts with their questions and answers."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

from lw_jax.errors import UserError

Split = Literal["train", "validation", "eval"]
"""train: the wire learns from it; validation: evaluated during training; eval: reported."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context.

    Attributes:
        id: name of the row.
        context_id: name of the context; rows that share it have the same context.
        context: the text.
        question: the question; "" if the anchor alone sets the task.
        answers: accepted answers; the first is trained on.
        level: level of a curriculum (facts: the number of sentences), else 0.
        row_id: the id that the user's file gives the row; "" where it gives none.
        article: name of what several contexts come from; "" where that is not known.
    """

    id: str
    context_id: str
    context: str
    question: str
    answers: tuple[str, ...]
    level: int = 0
    row_id: str = ""
    article: str = ""


class Remark(NamedTuple):
    """Something that is said of rows, in one line.

    Attributes:
        level: whether the run can go on.
        text: what is said.
    """

    level: Literal["ok", "warning", "error"]
    text: str


Group = Sequence[Example]
"""A context with its questions."""


_PIECE = re.compile(r"[^\W\d]{1,8}|\d|[^\w\s]")


def pieces(group: Group) -> int:
    """About how many tokens a context has with the longest of its questions and answers: words of
    at most eight letters, digits and signs. Nothing is tokenised, so it is the same for all models;
    it follows tokens more closely than characters do (docs/performance.md)."""
    asked = max(_pieces(one.question) + _pieces(one.answers[0]) for one in group)
    return _pieces(group[0].context) + asked


def _pieces(text: str) -> int:
    return sum(1 for _ in _PIECE.finditer(text))


class Rows(Protocol):
    """Contexts by index, each with all its questions.

    `rows[i]` is a pure function of i, and of the seed and split that the rows were made with.
    `malformed` names every row of the source that was left out: "file:line: what is wrong".
    """

    @property
    def malformed(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Example, ...]: ...


def picked(group: Group, count: int, rng: random.Random) -> tuple[Example, ...]:
    """`count` questions of a context at random; some twice if it has fewer."""
    order = rng.sample(group, len(group))
    return tuple(order[i % len(order)] for i in range(count))


def rng_of(name: str) -> random.Random:
    """Random draws that depend only on a row's name, the same on every machine."""
    return random.Random(hashlib.blake2b(name.encode(), digest_size=8).digest())


def check_split(split: str) -> Split:
    """The split, after a check of its name.

    Raises:
        UserError: there is no such split.
    """
    if split not in get_args(Split):
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(get_args(Split))}")
    return split  # type: ignore[return-value]
