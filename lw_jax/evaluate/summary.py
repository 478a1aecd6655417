"""From the predictions of one method to its figures, each with a 95 % interval and its n."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.metrics import metrics
from lw_jax.evaluate.metrics.base import Ended, Metric, Prediction, Rows

BOUNDS = (0.0, 1.0)
"""Of every figure that is a share."""

CHOICE = "choice"
"""The figure of what is chosen among candidates, which stands beside `em` where there are some."""

Values = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Per row [n]: the sum over the row's parts, and how many parts it has (0: does not count)."""


@dataclass(frozen=True)
class Settings:
    """How figures are made.

    Attributes:
        seed: of the bootstrap.
        resamples: of the bootstrap.
        ends_in_number: whether final numbers are scored (answers end in `#### N`).
    """

    seed: int
    resamples: int
    ends_in_number: bool = False


def per_row(rows: Rows, names: Collection[str] | None = None) -> dict[str, Values]:
    """The figures that are means over rows or over their parts, row by row.

    Args:
        rows: the rows.
        names: of the figures; None: all that there are.
    """
    return {
        name: _checked(metric, rows)
        for name, metric in metrics().items()
        if metric.per_row is not None and (names is None or name in names) and metric.of(rows)
    }


def _checked(metric: Metric, rows: Rows) -> Values:
    """A metric's values as arrays.

    Raises:
        UserError: they are not two sequences with an entry a row.
    """
    assert metric.per_row is not None
    found = metric.per_row(rows)
    sizes = [len(part) for part in found] if isinstance(found, tuple) else None
    if sizes != [len(rows.said)] * 2:
        raise UserError(
            f"metric {metric.name!r}: per_row has to give two sequences of {len(rows.said)} "
            "numbers, the rows' totals and how many parts they are of "
            "(lw_jax/evaluate/metrics/base.py)"
        )
    total, count = found
    return np.asarray(total, float), np.asarray(count, float)


def of_method(
    examples: Sequence[Example], said: Sequence[Prediction], seconds: float, settings: Settings
) -> dict[str, Any]:
    """The entry of one method in `metrics.json`.

    `disagreements` counts the rows where "all gold tokens are the argmax" and "greedy decoding
    writes the gold answer" differ, of `compared`: anything but 0 means that the scorer and the
    decoder saw different sequences (docs/design.md section 8). Of `compared` 0 nothing is known.
    `ended` has the share of outputs that ended at EOS, at a stop, or in neither way (`limit`: they
    ran into the most tokens), `empty` that of outputs with nothing before their end.
    """
    seen = Rows(examples, said, settings.ends_in_number)
    rows = per_row(seen)
    groups = [e.context_id for e in examples]
    compared = [p for p in said if p.same is not None]
    known = metrics()
    return {
        **{name: float(total.sum() / count.sum()) for name, (total, count) in rows.items()},
        **{
            name: float(metric.whole(seen))
            for name, metric in known.items()
            if metric.whole is not None and metric.of(seen)
        },
        "n": len(said),
        "seconds": seconds,
        "columns": float(np.mean([p.columns for p in said])),
        "wire_bytes": float(np.mean([p.wire_bytes for p in said])),
        "compared": len(compared),
        "disagreements": sum(p.same != p.argmax for p in compared),
        "ended": {how: _share(p.ended == how for p in said) for how in get_args(Ended)},
        "empty": _share(not p.text.strip() for p in said),
        "ci": {
            name: list(
                bootstrap.interval(
                    total,
                    count,
                    groups=groups,
                    seed=settings.seed,
                    resamples=settings.resamples,
                    bounds=BOUNDS if known[name].share else None,
                )
            )
            for name, (total, count) in rows.items()
        },
    }


def _share(rows: Iterable[bool]) -> float:
    return float(np.mean(list(rows)))


def floors(
    examples: Sequence[Example], others: Sequence[Example], ends_in_number: bool
) -> dict[str, dict[str, float]]:
    """What the gold answers of other contexts score, row i those of others[i]: what a `deranged`
    latent finds by chance. `entities` by kind, `answers` (final, partial, failed) of GSM8K."""
    rows = Rows(examples, [_as_said(o.answers[0]) for o in others], ends_in_number)
    found: dict[str, dict[str, float]] = {"entities": {}}
    for name, metric in metrics().items():
        if metric.floor and metric.per_row is not None and metric.of(rows):
            total, count = _checked(metric, rows)
            found.setdefault(metric.floor, {})[name] = float(total.sum() / count.sum())
    return found


def _as_said(text: str) -> Prediction:
    return Prediction(text, 0.0, 0, 0, False, None, 0, 0)


def golds(example: Example) -> set[str]:
    """The answers that are right."""
    return {answer.strip() for answer in example.answers}
