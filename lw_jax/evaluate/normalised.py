"""What share of the text's worth a latent carries: the teacher-normalised score.

    (latent - nothing) / (text - nothing)

`text` and `nothing` are receivers that were tuned with as much care as the bridge, so that the
score is 0 for a latent that says no more than the question does, and 1 for one that is as good as
the text. It is taken of a figure where more is better (F1) or less (nats a token) alike. Its
interval comes from a bootstrap at two levels: whole groups of rows (articles) and, where there are
several, seeds of the bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 0.2
"""Smallest distance of text and nothing for which a share of it says something, in F1."""


@dataclass(frozen=True)
class Line:
    """One method's figure, row by row.

    Attributes:
        total: [S, n] sums over a row's parts, of S seeds; or [n] of one.
        count: the parts of each row, likewise; None: one each.
    """

    total: ArrayLike
    count: ArrayLike | None = None

    def sums(self, label: NDArray[np.int64], groups: int) -> tuple[NDArray, NDArray]:
        """Sums and counts of whole groups, [S, groups].

        Args:
            label: [n] group of every row.
            groups: number of groups.
        """
        total = np.atleast_2d(np.asarray(self.total, np.float64))
        parts = np.ones_like(total) if self.count is None else np.asarray(self.count, np.float64)
        parts = np.broadcast_to(np.atleast_2d(parts), total.shape)
        added = [[np.bincount(label, row, groups) for row in values] for values in (total, parts)]
        return np.stack(added[0]), np.stack(added[1])


@dataclass(frozen=True)
class Score:
    """A normalised score.

    Attributes:
        share: (latent - nothing) / (text - nothing).
        low: lower end of its 95 % interval.
        high: upper end.
        of_text: latent / text, as others report it.
        latent: the latent's figure.
        text: the tuned text's.
        nothing: the tuned receiver's that is given nothing.
    """

    share: float
    low: float
    high: float
    of_text: float
    latent: float
    text: float
    nothing: float


def score(
    latent: Line,
    text: Line,
    nothing: Line,
    groups: Sequence[object],
    *,
    seed: int,
    resamples: int = 2000,
    least: float = LEAST,
    level: float = 0.95,
) -> Score | None:
    """The normalised score of a figure that all three have on the same n rows.

    Args:
        latent: the bridge's line, of one or several seeds.
        text: of the tuned receiver that reads the text.
        nothing: of the tuned receiver that is given nothing.
        groups: n hashable labels; rows that share one are resampled together.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        least: smallest distance of text and nothing.
        level: of the interval.

    Returns:
        The score; None where text and nothing are nearer to each other than `least`.
    """
    order: dict[object, int] = {}
    label = np.array([order.setdefault(group, len(order)) for group in groups], np.int64)
    lines = [line.sums(label, len(order)) for line in (latent, text, nothing)]
    mine, whole, bare = (float(np.mean(s.sum(1) / c.sum(1))) for s, c in lines)
    if abs(whole - bare) < least:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, 3))
    for i in range(resamples):
        pick = rng.integers(0, len(order), len(order))
        for j, (total, count) in enumerate(lines):
            seeds = rng.integers(0, len(total), len(total)) if len(total) > 1 else [0]
            values = total[seeds][:, pick].sum(1) / np.maximum(1e-12, count[seeds][:, pick].sum(1))
            drawn[i, j] = values.mean()
    apart = drawn[:, 1] - drawn[:, 2]
    shares = (drawn[:, 0] - drawn[:, 2]) / np.where(apart == 0, np.nan, apart)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(shares, [tail, 100 - tail])
    return Score(
        share=(mine - bare) / (whole - bare),
        low=float(low),
        high=float(high),
        of_text=mine / whole if whole else float("nan"),
        latent=mine,
        text=whole,
        nothing=bare,
    )
