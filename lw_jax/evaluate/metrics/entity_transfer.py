"""Entity transfer: the share of a text's numbers, names and nouns that stand in the output.

`numbers`, `names`, `entities` and `nouns` measure it against the gold answer: of a text read back,
that is the text itself. Where the text is a problem and the answer its solution, `source_numbers`,
... measure it against the problem, which is what the earlier systems counted (their 5.2 %: of the
question's entities, 5.2 % stood in the output). The floor of both is what the gold answers of other
rows have (docs/design.md section 8).
"""

from __future__ import annotations

from functools import partial

from lw_jax.data.example import Example
from lw_jax.evaluate.metrics import entities
from lw_jax.evaluate.metrics.base import Metric, Rows, Values

KINDS = ("numbers", "names", "entities", "nouns")
LONG = 2
"""Entities a gold text has on average where their transfer is scored; a short answer has `em`."""

Moved = list[dict[str, tuple[int, int]]]
"""Row by row, by kind: found in the output, in the text."""


def is_problem(example: Example) -> bool:
    """Whether the text asks for something else than itself, without a question of its own."""
    return not example.question and example.context.strip() != example.answers[0].strip()


def _moved(source: bool, rows: Rows) -> Moved:
    """What came over of every row; [] where it is not scored."""
    if source and not all(is_problem(e) for e in rows.examples):
        return []
    texts = [e.context if source else e.answers[0] for e in rows.examples]
    pairs = zip(texts, rows.said, strict=True)
    found = [entities.transferred(text, p.text) for text, p in pairs]
    return found if sum(m["entities"][1] for m in found) >= LONG * len(found) else []


def _held(source: bool, rows: Rows) -> Moved:
    found: Moved = rows.together(f"transfer, {source}", partial(_moved, source))
    return found


def _per_row(source: bool, kind: str, rows: Rows) -> Values:
    found = _held(source, rows)
    return [m[kind][0] for m in found], [m[kind][1] for m in found]


def _applies(source: bool, kind: str, rows: Rows) -> bool:
    return any(m[kind][1] for m in _held(source, rows))


SHOWN = {"entities": 40, "nouns": 50, "source_entities": 60}
METRICS = tuple(
    Metric(
        ("source_" if source else "") + kind,
        80 + 10 * source + i,
        partial(_per_row, source, kind),
        applies=partial(_applies, source, kind),
        column=SHOWN.get(("source_" if source else "") + kind),
        interval=kind == "entities" and not source,
        recorded=kind == "entities",
        floor="entities",
        says=f"{kind} of the {'text' if source else 'gold answer'} that stand in the answer",
    )
    for source in (False, True)
    for i, kind in enumerate(KINDS)
)
