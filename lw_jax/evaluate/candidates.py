"""The answers that a receiver chooses from, where a task has a few: none need write to be compared.

A receiver that was never trained for a task's form of answer writes none of its labels, and exact
match then says nothing of what it has understood; which label it finds most probable does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lw_jax.data.example import Example
from lw_jax.data.load import labels_of
from lw_jax.errors import UserError
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.text.layout import check_labels
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


def candidates_of(
    cfg: EvaluateConfig,
    data: Any,
    layout: LayoutConfig,
    examples: Sequence[Example],
    receivers: Iterable[Tokenizer],
) -> tuple[str, ...]:
    """The candidates of an evaluation of these rows; () where nothing is chosen.

    Raises:
        UserError: a row's answer is none of them, a receiver's tokenizer does not give one back, or
            they are asked for where receivers write more than an answer.
    """
    given = labels_of(data) if cfg.candidates is None else cfg.candidates
    if layout.target != "answer":
        if cfg.candidates:
            raise UserError(
                f"candidates: layout.target {layout.target} has the receiver write more than an "
                "answer; choose with target: answer"
            )
        return ()
    found = tuple(word.strip() for word in given)
    for example in examples if found else ():
        if not {answer.strip() for answer in example.answers} & set(found):
            raise UserError(
                f"candidates: {', '.join(found)}; the answer of row {example.id} is none of "
                f"them: {example.answers[0].strip()[:40]!r}"
            )
    for tokenizer in receivers:
        check_labels(layout, tokenizer, answering(examples, found))
    return found


def answering(examples: Sequence[Example], candidates: Sequence[str]) -> list[Example]:
    """Every question with every candidate for its answer, and no text: what they are written in."""
    one_of_each = {example.question: example for example in examples}.values()
    return [replace(e, context="", answers=(word,)) for e in one_of_each for word in candidates]
