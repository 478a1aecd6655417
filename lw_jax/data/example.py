"""What every data set yields: contexts with their questions and answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from lw_jax.errors import UserError

Split = Literal["train", "validation", "eval"]
"""train: the wire learns from it; validation: watched while it learns; eval: reported."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question (or "" where the task is the anchor's alone) about one context.

    `answers[0]` is trained on; any of `answers` counts as right. Rows with one `context_id` have
    the same context. `level` is a curriculum level (facts: the number of sentences), else 0.
    """

    id: str
    context_id: str
    context: str
    question: str
    answers: tuple[str, ...]
    level: int = 0


Group = Sequence[Example]
"""A context with its questions."""


class Rows(Protocol):
    """Contexts by index, each with all its questions.

    `rows[i]` is a pure function of i, and of the seed and split that the rows were made with.
    `malformed` names every row of the source that was left out: "file:line: what is wrong".
    """

    @property
    def malformed(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Example, ...]: ...


def rng_of(name: str) -> random.Random:
    """Random draws that depend on a row's name alone, on every machine."""
    return random.Random(hashlib.blake2b(name.encode(), digest_size=8).digest())


def check_split(split: str) -> Split:
    """`split`, if it is one; raises UserError."""
    if split not in get_args(Split):
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(get_args(Split))}")
    return split  # type: ignore[return-value]
