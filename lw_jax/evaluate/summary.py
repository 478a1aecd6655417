"""From the predictions of one method to its figures, each with a 95 % interval and its n.

Entity transfer (docs/design.md section 8) is the share of a text's numbers, names and nouns that
stand in the output. `numbers`, `names`, `entities` and `nouns` measure it against the gold answer:
of a text read back, that is the text itself. Where the text is a problem and the answer its
solution, `source_numbers`, ... measure it against the problem, which is what the earlier systems
counted (their 5.2 %: of the question's entities, 5.2 % stood in the output). The floor of both is
what the gold answers of other rows have (`floors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_jax.data.example import Example
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.metrics import degenerate, entities, numbers, squad

KINDS = ("numbers", "names", "entities", "nouns")
BOUNDS = (0.0, 1.0)
"""Of every figure that is a share; `nll` is none."""

CHOICE = "choice"
"""The figure of what is chosen among candidates, which stands beside `em` where there are some."""

Values = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Per row [n]: the sum over the row's parts, and how many parts it has (0: does not count)."""


LONG = 2
"""Entities a gold text has on average where their transfer is scored; a short answer has `em`."""


@dataclass(frozen=True)
class Prediction:
    """What one method says about one example, and how it scores the gold answer.

    text: decoded output; nll: summed over the gold tokens (EOS included), nats; tokens: how many;
    first_rank: rank of the first gold token that is no space (0: the argmax); argmax: every gold
    token is the argmax when the gold ones before it are given; same: the decoded ids are the gold
    ids, None where decoding could not have written them (too few tokens, or not plain greedy);
    columns: receiver columns of the message; wire_bytes: what the message costs on the wire;
    nats: log-probability of each answer to choose from, EOS included; empty: nothing is chosen.
    """

    text: str
    nll: float
    tokens: int
    first_rank: int
    argmax: bool
    same: bool | None
    columns: int
    wire_bytes: int
    nats: Mapping[str, float] = field(default_factory=dict)

    @property
    def choice(self) -> str | None:
        """The candidate that is most probable as a whole answer; the first of those alike.

        Not by its length: whole answers exclude each other, and a trained receiver was trained for
        exactly these probabilities.
        """
        return max(self.nats, key=lambda answer: self.nats[answer]) if self.nats else None


@dataclass(frozen=True)
class Settings:
    """seed and resamples of the bootstrap; gsm8k: score final numbers (answers end `#### N`)."""

    seed: int
    resamples: int
    gsm8k: bool = False


def per_row(
    examples: Sequence[Example], said: Sequence[Prediction], gsm8k: bool
) -> dict[str, Values]:
    """The figures that are means over rows or over their parts, row by row."""
    pairs = list(zip(examples, said, strict=True))
    one = [1] * len(pairs)
    parts: dict[str, tuple[list[float], list[int]]] = {
        "em": ([squad.exact_match(p.text, e.answers) for e, p in pairs], one),
        "f1": ([squad.f1(p.text, e.answers) for e, p in pairs], one),
        "nll": ([p.nll for p in said], [p.tokens for p in said]),
        "first_top1": ([float(p.first_rank < 1) for p in said], one),
        "first_top5": ([float(p.first_rank < 5) for p in said], one),
        "loops": ([degenerate.loops(p.text) for p in said], one),
    }
    if all(p.nats for p in said):
        parts[CHOICE] = ([float(p.choice in golds(e)) for e, p in pairs], one)
    parts |= _transfer([e.answers[0] for e in examples], [p.text for p in said], "")
    if all(_is_problem(e) for e in examples):
        parts |= _transfer([e.context for e in examples], [p.text for p in said], "source_")
    if gsm8k:
        parts |= {name: (values, one) for name, values in _solved(pairs).items()}
    return {name: (np.asarray(t, float), np.asarray(c, float)) for name, (t, c) in parts.items()}


def _transfer(
    texts: Sequence[str], outputs: Sequence[str], prefix: str
) -> dict[str, tuple[list[float], list[int]]]:
    """Entities of the texts found in the outputs, by kind; none where the texts are short."""
    moved = [entities.transferred(t, o) for t, o in zip(texts, outputs, strict=True)]
    if sum(m["entities"][1] for m in moved) < LONG * len(moved):
        return {}
    return {
        prefix + kind: ([float(m[kind][0]) for m in moved], [m[kind][1] for m in moved])
        for kind in KINDS
        if any(m[kind][1] for m in moved)
    }


def _is_problem(example: Example) -> bool:
    """Whether the text asks for something else than itself, without a question of its own."""
    return not example.question and example.context.strip() != example.answers[0].strip()


def _solved(pairs: Sequence[tuple[Example, Prediction]]) -> dict[str, list[float]]:
    """GSM8K: final number right, else the right format and a number of the question, else failed.

    The three add up to 1.
    """
    final = [numbers.final_correct(p.text, _gold(e)) for e, p in pairs]
    near = [numbers.partial(p.text, e.context + " " + e.question) for e, p in pairs]
    partial = [n * (1 - f) for n, f in zip(near, final, strict=True)]
    failed = [1 - f - n for f, n in zip(final, partial, strict=True)]
    return {"final": final, "partial": partial, "failed": failed}


def of_method(
    examples: Sequence[Example], said: Sequence[Prediction], seconds: float, settings: Settings
) -> dict[str, Any]:
    """The entry of one method in `metrics.json`.

    `disagreements` counts the rows where "all gold tokens are the argmax" and "greedy decoding
    writes the gold answer" differ, of `compared`: anything but 0 means that the scorer and the
    decoder saw different sequences (docs/design.md section 8).
    """
    rows = per_row(examples, said, settings.gsm8k)
    groups = [e.context_id for e in examples]
    compared = [p for p in said if p.same is not None]
    return {
        **{name: float(total.sum() / count.sum()) for name, (total, count) in rows.items()},
        "distinct": degenerate.distinct([p.text for p in said]),
        "n": len(said),
        "seconds": seconds,
        "columns": float(np.mean([p.columns for p in said])),
        "wire_bytes": float(np.mean([p.wire_bytes for p in said])),
        "compared": len(compared),
        "disagreements": sum(p.same != p.argmax for p in compared),
        "ci": {
            name: list(
                bootstrap.interval(
                    total,
                    count,
                    groups=groups,
                    seed=settings.seed,
                    resamples=settings.resamples,
                    bounds=None if name == "nll" else BOUNDS,
                )
            )
            for name, (total, count) in rows.items()
        },
    }


def floors(
    examples: Sequence[Example], others: Sequence[Example], gsm8k: bool
) -> dict[str, dict[str, float]]:
    """What the gold answers of other contexts score, row i those of others[i]: what a `deranged`
    latent finds by chance. `entities` by kind, `answers` (final, partial, failed) of GSM8K."""
    golds = [_gold(o) for o in others]
    parts = _transfer([_gold(e) for e in examples], golds, "")
    if all(_is_problem(e) for e in examples):
        parts |= _transfer([e.context for e in examples], golds, "source_")
    found = {"entities": {name: sum(hits) / sum(of) for name, (hits, of) in parts.items()}}
    if gsm8k:
        said = [(e, _as_said(gold)) for e, gold in zip(examples, golds, strict=True)]
        found["answers"] = {k: float(np.mean(v)) for k, v in _solved(said).items()}
    return found


def _as_said(text: str) -> Prediction:
    return Prediction(text, 0.0, 0, 0, False, None, 0, 0)


def _gold(example: Example) -> str:
    return example.answers[0]


def golds(example: Example) -> set[str]:
    """The answers that are right."""
    return {answer.strip() for answer in example.answers}
