"""95 % percentile bootstrap intervals (Efron and Tibshirani 1993), vectorised.

Questions of one context are not independent, so whole groups of rows are resampled; with a group
per row it is the ordinary bootstrap.

Where every group has the same value c, nothing resampled differs from it and the percentiles would
claim certainty: 20 of 20 right is no [1, 1]. For values that lie in a known range the interval then
comes from the exact binomial one (Clopper and Pearson 1934), which for n of n groups has a closed
form: with confidence `level`, at most a share u = 1 - ((1 - level) / 2)^(1 / n) of all groups has
another value than c, so the mean lies within u of the way from c to each end of the range. For
rights and wrongs (range 0 to 1) that is Clopper-Pearson itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 4_000_000  # indices held at once


def interval(
    total: ArrayLike,
    count: ArrayLike | None = None,
    *,
    groups: Sequence[object] | None = None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Interval of sum(total) / sum(count) over resampled groups.

    Args:
        total: [n] a value per row (or a sum over the row's parts).
        count: [n] the parts of each row; None: one. Rows with no part do not count.
        groups: n hashable labels of rows that are resampled together; None: every row apart.
        seed: of the resampling; the same seed gives the same bits.
        bounds: the least and the most that a value can be, where they are known: (0, 1) of a share.

    Returns:
        (low, high); (nan, nan) when there is nothing to average, or one group alone and no bounds:
        nothing is known of another one.
    """
    sums, counts = _by_group(np.asarray(total, np.float64), count, groups)
    if counts.sum() == 0:
        return float("nan"), float("nan")
    values = sums / counts
    if bounds is not None and np.ptp(values) == 0:
        return of_one_value(float(values[0]), len(values), bounds, level)
    if len(values) == 1:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(sums))
    parts = []
    for begin in range(0, resamples, rows):
        pick = rng.integers(0, len(sums), (min(rows, resamples - begin), len(sums)))
        parts.append(sums[pick].sum(1) / counts[pick].sum(1))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(parts), [tail, 100 - tail])
    return float(low), float(high)


def paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    seed: int,
    resamples: int = 2000,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, tuple[float, float]]:
    """mean(a - b) over the same rows, [n] each, and its interval. bounds: of a and of b."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    apart = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    low_high = interval(difference, groups=groups, seed=seed, resamples=resamples, bounds=apart)
    return float(difference.mean()), low_high


def of_one_value(
    value: float, groups: int, bounds: tuple[float, float], level: float
) -> tuple[float, float]:
    """The interval of a value that all of so many groups have; see above."""
    other = 1 - ((1 - level) / 2) ** (1 / groups)
    low, high = bounds
    return value - other * (value - low), value + other * (high - value)


def _by_group(
    total: NDArray[np.float64], count: ArrayLike | None, groups: Sequence[object] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    parts = np.ones_like(total) if count is None else np.asarray(count, np.float64)
    if groups is None:
        keep = parts > 0
        return total[keep], parts[keep]
    order: dict[object, int] = {}
    label = np.array([order.setdefault(g, len(order)) for g in groups])
    sums = np.bincount(label, total, len(order)).astype(np.float64)
    counts = np.bincount(label, parts, len(order)).astype(np.float64)
    keep = counts > 0
    return sums[keep], counts[keep]
