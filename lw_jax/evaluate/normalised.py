"""What share of the text's worth a latent carries: the teacher-normalised score.

    (latent - nothing) / (text - nothing)

`text` and `nothing` are receivers that were tuned with as much care as the bridge, so that the
score is 0 for a latent that says no more than the question does, and 1 for one that is as good as
the text. It is taken of a figure where more is better (F1) or less (nats a token) alike. Its
interval comes from a bootstrap at two levels: whole groups of rows (articles) and, where there are
several, seeds of the bridge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_jax.evaluate.bootstrap import of_one_value

LEAST = 0.2
"""Smallest distance of text and nothing for which a share of it says something, in F1."""
TIE = 1e-12
"""Spread of a figure's draws that is rounding alone."""
_CHUNK = 4_000_000  # counts held at once
FIGURES = {"f1": "F1", "nll": "nats"}
"""The figures that the score is taken of, and how they are called."""
EXACT = "em"
"""Exact match, which is said beside the score of F1."""


@dataclass(frozen=True)
class Line:
    """One method's figure, row by row.

    Attributes:
        total: [S, n] sums over a row's parts, of S seeds; or [n] of one.
        count: the parts of each row, likewise; None: one each.
    """

    total: ArrayLike
    count: ArrayLike | None = None

    def mean(self) -> float:
        """Over rows (and parts), then over seeds."""
        total = np.atleast_2d(np.asarray(self.total, np.float64))
        count = np.ones_like(total) if self.count is None else np.asarray(self.count, np.float64)
        count = np.broadcast_to(np.atleast_2d(count), total.shape)
        return float(np.mean(total.sum(1) / count.sum(1)))

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
        low: lower end of its 95 % interval; NaN where all rows are of one group, where all rows
            tie, or where there are two seeds, which say too little of their spread.
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

    def __str__(self) -> str:
        ends = f" [{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.low) else ""
        return f"{self.share:.2f}{ends}"

    def to_json(self) -> dict[str, Any]:
        """As it stands in `metrics.json`."""
        ends = [self.low, self.high] if math.isfinite(self.low) else None
        return {
            "share": self.share,
            "ci": ends,
            "of_text": self.of_text,
            "own": self.latent,
            "text": self.text,
            "nothing": self.nothing,
        }


@dataclass(frozen=True)
class Resampled:
    """Lines on the same rows, drawn together: whole groups of rows, and seeds of each line.

    Attributes:
        means: of the lines.
        drawn: [resamples, lines] means of every draw.
        known: whether an interval can be told: of several groups, and of no line with two seeds,
            which say too little of their spread.
        groups: how many groups of rows there are.
    """

    means: tuple[float, ...]
    drawn: NDArray[np.float64]
    known: bool
    groups: int

    @classmethod
    def of(
        cls, lines: Sequence[Line], groups: Sequence[object], seed: int, resamples: int
    ) -> Resampled:
        """Lines of n rows each.

        Args:
            lines: the lines.
            groups: n hashable labels; rows that share one are drawn together.
            seed: of the draws.
            resamples: number of draws.
        """
        order: dict[object, int] = {}
        label = np.array([order.setdefault(group, len(order)) for group in groups], np.int64)
        held = [line.sums(label, len(order)) for line in lines]
        means = tuple(float(np.mean(s.sum(1) / c.sum(1))) for s, c in held)
        rng = np.random.default_rng(seed)
        drawn = np.empty((resamples, len(held)))
        at_once = max(1, _CHUNK // len(order))
        for begin in range(0, resamples, at_once):
            size = min(at_once, resamples - begin)
            times = rng.multinomial(len(order), np.full(len(order), 1 / len(order)), size)
            for j, (total, count) in enumerate(held):
                values = (total @ times.T) / np.maximum(1e-12, count @ times.T)  # [S, size]
                if len(total) > 1:
                    seeds = rng.integers(0, len(total), (len(total), size))
                    values = np.take_along_axis(values, seeds, axis=0)
                drawn[begin : begin + size, j] = values.mean(0)
        known = len(order) > 1 and all(len(total) != 2 for total, _ in held)
        return cls(means, drawn, known, len(order))

    def interval(
        self,
        values: NDArray[np.float64],
        level: float = 0.95,
        bounds: tuple[float, float] | None = None,
    ) -> tuple[float, float]:
        """The ends of what a figure of every draw lies between; NaN where that cannot be told.

        Where it is the same in every draw, as of ties in all rows, the draws would claim certainty:
        then it is the exact interval of so many groups (`lw_jax.evaluate.bootstrap`), or NaN.

        Args:
            values: the figure of every draw.
            level: of the interval.
            bounds: the least and the most that the figure can be, where they are known.
        """
        if not self.known:
            return float("nan"), float("nan")
        if np.ptp(values) <= TIE:
            if bounds is None:
                return float("nan"), float("nan")
            return of_one_value(float(values[0]), self.groups, bounds, level)
        tail = 50 * (1 - level)
        low, high = np.nanpercentile(values, [tail, 100 - tail])
        return float(low), float(high)


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
    both = Resampled.of((latent, text, nothing), groups, seed, resamples)
    mine, whole, bare = both.means
    if abs(whole - bare) < least:
        return None
    drawn = both.drawn
    apart = drawn[:, 1] - drawn[:, 2]
    shares = (drawn[:, 0] - drawn[:, 2]) / np.where(apart == 0, np.nan, apart)
    share = (mine - bare) / (whole - bare)
    ends = latent is text or latent is nothing  # 1 and 0 by what they are
    low, high = (share, share) if ends and both.known else both.interval(shares, level)
    return Score(
        share=share,
        low=low,
        high=high,
        of_text=mine / whole if whole else float("nan"),
        latent=mine,
        text=whole,
        nothing=bare,
    )


@dataclass(frozen=True)
class Groups:
    """Which rows are resampled together.

    Attributes:
        kind: whole articles, where every row has one; else contexts.
        labels: of the rows.
        seeds: how many seeds' runs the figures are of.
    """

    kind: Literal["article", "context"]
    labels: Sequence[str]
    seeds: int = 1

    @classmethod
    def of(cls, articles: Sequence[str], contexts: Sequence[str], seeds: int = 1) -> Groups:
        """By article, if it is known of every row.

        Args:
            articles: of the rows; "" where it is not known.
            contexts: of the rows.
            seeds: how many seeds' runs.
        """
        if all(articles):
            return cls("article", articles, seeds)
        return cls("context", contexts, seeds)

    def __str__(self) -> str:
        count = len(set(self.labels))
        over = f"{count} {self.kind}{'s' * (count != 1)}"
        return over if self.seeds == 1 else f"{over} and {self.seeds} seeds"


def of_lines(
    lines: Mapping[str, Mapping[str, Line]],
    text: Sequence[str],
    nothing: str,
    groups: Groups,
    *,
    seed: int,
    resamples: int = 2000,
    shown: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The score of every line of one receiver, as it stands in `metrics.json`.

    Args:
        lines: by name its `f1` and `nll`, row by row, and `em` where it is to be said.
        text: names of the lines that are given the text; the best of them by F1 is the upper end.
        nothing: name of the line that is the lower end.
        groups: which rows are resampled together.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        shown: lines that `words` has a sentence about; None: all but the two ends.

    Returns:
        `text` and `nothing`, the ends; `of`, the lines that were asked for as text; `groups` and
        `count`, what was resampled; `why`, if there is no score; `lines`, by name `f1` and `nll`
        (null where there is no score in nats); `words`.
    """
    best = max(text, key=lambda name: lines[name]["f1"].mean())
    whole, bare = (lines[name]["f1"].mean() for name in (best, nothing))
    found: dict[str, Any] = {
        "text": best,
        "nothing": nothing,
        "of": list(text),
        "groups": groups.kind,
        "count": len(set(groups.labels)),
        "seeds": groups.seeds,
        "why": None,
        "lines": {},
    }
    ends = f"{best} {whole:.3f}, {nothing} {bare:.3f}"
    if not whole - bare >= LEAST:
        found["why"] = f"text - nothing is {whole - bare:.3f} F1 ({ends}), below {LEAST:g}"
        return found | {"words": [f"No share of what the text is worth: {found['why']}."]}
    nats = lines[best]["nll"].mean() < lines[nothing]["nll"].mean()
    words = []
    for name, own in lines.items():
        scores: dict[str, Score | None] = {}
        for figure in FIGURES:
            parts = (own[figure], lines[best][figure], lines[nothing][figure])
            scores[figure] = (
                score(*parts, groups.labels, seed=seed, resamples=resamples, least=0.0)
                if figure == "f1" or nats
                else None
            )
        found["lines"][name] = {k: None if s is None else s.to_json() for k, s in scores.items()}
        if name not in (best, nothing) if shown is None else name in shown:
            exact = [lines[one][EXACT].mean() for one in (name, best, nothing) if EXACT in own]
            words.append(_sentence(name, best, scores, exact))
    if words:
        over = f"intervals over {groups}"
        if found["count"] < 2:
            over = f"no intervals: there is one {groups.kind}"
        elif groups.seeds == 2:
            over = f"no intervals of two seeds ({groups})"
        words.append(f"Shares are of {ends} F1; {over}.")
    return found | {"words": words}


def _sentence(
    name: str, best: str, scores: Mapping[str, Score | None], exact: Sequence[float]
) -> str:
    f1, nll = scores["f1"], scores["nll"]
    assert f1 is not None
    nats = "none in nats, where the text is worth nothing" if nll is None else f"{nll} in nats"
    figures = f"{name} {f1.latent:.3f}, text {f1.text:.3f}, nothing {f1.nothing:.3f}"
    if exact:
        figures += f"; EM {', '.join(f'{share:.3f}' for share in exact)}"
    return (
        f"{name} carries {f1} of what the text ({best}) is worth in F1 ({figures}), {nats}; "
        f"{name} / text {f1.of_text:.2f} in F1."
    )
