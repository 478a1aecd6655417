"""From the predictions of one method to its figures, each with a 95 % interval and its n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_jax.data.example import Example
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.metrics import degenerate, entities, numbers, squad

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
    columns: receiver columns of the message; wire_bytes: what the message costs on the wire.
    """

    text: str
    nll: float
    tokens: int
    first_rank: int
    argmax: bool
    same: bool | None
    columns: int
    wire_bytes: int


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
    moved = [entities.transferred(_gold(e), p.text) for e, p in pairs]
    long = sum(m["entities"][1] for m in moved) >= LONG * len(moved)
    for kind in ("numbers", "names", "entities"):
        if long and any(m[kind][1] for m in moved):
            parts[kind] = ([float(m[kind][0]) for m in moved], [m[kind][1] for m in moved])
    if gsm8k:
        parts["final"] = ([numbers.final_correct(p.text, _gold(e)) for e, p in pairs], one)
        asked = [numbers.partial(p.text, e.context + " " + e.question) for e, p in pairs]
        parts["partial"] = (asked, one)
    return {name: (np.asarray(t, float), np.asarray(c, float)) for name, (t, c) in parts.items()}


def of_method(
    examples: Sequence[Example], said: Sequence[Prediction], seconds: float, settings: Settings
) -> dict[str, Any]:
    """The entry of one method in `metrics.json`.

    `disagreements` counts the rows where "all gold tokens are the argmax" and "greedy decoding
    writes the gold answer" differ, of `compared`: anything but 0 means that the scorer and the
    decoder saw different sequences (SPEC section 8).
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
                    total, count, groups=groups, seed=settings.seed, resamples=settings.resamples
                )
            )
            for name, (total, count) in rows.items()
        },
    }


def entity_floor(examples: Sequence[Example], others: Sequence[Example]) -> dict[str, float]:
    """Share of the gold texts' entities that occur in the gold text of another context: what a
    `deranged` latent finds by chance, row i against others[i]."""
    moved = [
        entities.transferred(_gold(e), _gold(o)) for e, o in zip(examples, others, strict=True)
    ]
    floor = {}
    for kind in ("numbers", "names", "entities"):
        total = sum(m[kind][1] for m in moved)
        if total:
            floor[kind] = sum(m[kind][0] for m in moved) / total
    return floor


def _gold(example: Example) -> str:
    return example.answers[0]
