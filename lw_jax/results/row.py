"""A row of a table: one receiver's figures in one evaluation, of one or several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import asin, hypot, pi, sin, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit  # type: ignore[import-untyped]

from lw_jax.errors import UserError
from lw_jax.evaluate.metrics import metrics

SHARE = (0.0, 1.0)
"""Bounds of a share."""
Z = 1.959964
"""Of 95 % of a normal distribution."""


@dataclass(frozen=True)
class Seed:
    """One record, seen through one evaluation and one receiver.

    Attributes:
        record: the record.
        evaluation: the evaluation.
        receiver: the receiver's name.
    """

    record: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    receiver: str

    def method(self, name: str) -> Mapping[str, Any] | None:
        """A method's figures; None: it was not run."""
        methods = self.evaluation.get("receivers", {}).get(self.receiver, {})
        found: Mapping[str, Any] | None = methods.get(name)
        return found

    @property
    def compression(self) -> Mapping[str, Any]:
        """Tokens and characters per column."""
        found: Mapping[str, Any] = self.evaluation["compression"]["receivers"][self.receiver]
        return found

    @property
    def training(self) -> Mapping[str, Any]:
        """The last train stage; empty for a run without one."""
        stages = list(self.record["training"].values())
        return stages[-1] if stages else {}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: what distinguishes it.
        seeds: records that differ only in the seed.
        beside: companion rows by name: the same bridge on other data; None: there is none.
        method: the method that the row is about.
    """

    label: str
    seeds: tuple[Seed, ...]
    beside: Mapping[str, Row | None] = field(default_factory=dict)
    method: str = "latent"

    def figure(self, method: str, metric: str) -> Figure | None:
        """A metric of a method, over the seeds; None: it was not measured."""
        found = [s.method(method) for s in self.seeds]
        held = [m for m in found if m is not None and metric in m]
        if len(held) < len(self.seeds):
            return None
        known = metrics().get(metric)
        return combine(
            [m[metric] for m in held],
            [m.get("ci", {}).get(metric) for m in held],
            SHARE if known is not None and known.share else None,
        )


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        values: of each seed.
        low: lower end of the 95 % interval; None: there is none. Of two seeds it is the interval
            of the first one's rows, of more that of the seeds' mean (`combine`).
        high: upper end; None: there is none.
    """

    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds; of equal values this very value."""
        return self.values[0] if len(set(self.values)) == 1 else fmean(self.values)

    def __str__(self) -> str:
        shown, others = (
            (self.mean, ()) if len(self.values) != 2 else (self.values[0], self.values[1:])
        )
        ends = (
            ""
            if self.low is None or self.high is None
            else f" [{_plain(self.low)}, {_plain(self.high)}]"
        )
        return ", ".join([f"{_plain(shown)}{ends}", *map(_plain, others)])


def _plain(value: float) -> str:
    return f"{value:.3f}"


def combine(
    values: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    bounds: tuple[float, float] | None = None,
) -> Figure:
    """The seeds' values as one figure, with the interval that so many seeds allow.

    One seed: its own, of its rows. Two: both values, and the first one's interval of rows; two
    values say too little of the spread between seeds for an interval of their mean (Student's t is
    12.7). More: the interval of the mean. Its half-width adds two parts in squares:

    * rows: the mean of the seeds' half-widths. All seeds answer the same rows, so more seeds do not
      make this part smaller.
    * seeds: the standard error of the mean, times Student's t for so many seeds.

    Near 0 and 1 both parts of a share are too small and symmetric. There the rows' is at least
    Wilson's (1927), and the seeds' at least that of the values' arcsines, whose spread does not
    depend on the share. (`tests/results/test_intervals.py` has the simulated coverage.)

    Args:
        values: of each seed.
        intervals: 95 % over rows, of each seed; None: it has none.
        bounds: (0, 1) of a share; None: any value is possible.
    """
    found = tuple(values)
    if any(i is None or None in i for i in intervals):  # null: it cannot be told
        return Figure(found)
    low_high = [(i[0], i[1]) for i in intervals if i is not None]
    if len(found) < 3:
        return Figure(found, *low_high[0])
    mean = fmean(found)
    below = fmean(v - low for v, (low, _) in zip(found, low_high, strict=True))
    above = fmean(high - v for v, (_, high) in zip(found, low_high, strict=True))
    rows, seeds = (below, above), _of_mean(found)
    if bounds == SHARE:
        rows = _wider(rows, _wilson(mean, (below + above) / 2))
        seeds = _wider(seeds, _of_arcsines(found))
    low, high = mean - hypot(rows[0], seeds[0]), mean + hypot(rows[1], seeds[1])
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Figure(found, low, high)


Reach = tuple[float, float]
"""How far an interval reaches below and above its middle."""


def _wider(one: Reach, other: Reach) -> Reach:
    return max(one[0], other[0]), max(one[1], other[1])


def _of_mean(values: Sequence[float]) -> Reach:
    """Student's interval of the mean."""
    t = float(stdtrit(len(values) - 1, 0.975))
    reach = t * stdev(values) / sqrt(len(values))
    return reach, reach


def _of_arcsines(shares: Sequence[float]) -> Reach:
    """Student's interval of the mean arcsine of the shares' roots, as shares again."""
    angles = [asin(sqrt(min(1.0, max(0.0, share)))) for share in shares]
    mean, angle, (reach, _) = fmean(shares), fmean(angles), _of_mean(angles)
    low, high = sin(max(0.0, angle - reach)) ** 2, sin(min(pi / 2, angle + reach)) ** 2
    return mean - low, high - mean


def _wilson(share: float, half: float) -> Reach:
    """Wilson's interval of a share, of as many rows as give it this half-width by the normal
    approximation."""
    if not 0 < share < 1 or half <= 0:
        return 0.0, 0.0
    n = Z * Z * share * (1 - share) / (half * half)
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return share - (middle - reach), middle + reach - share


def read_row(records: Mapping[str, Mapping[str, Any]], spec: Mapping[str, Any]) -> Row:
    """A row as a page's source describes it.

    Keys: label, records, and optionally stage, receiver, method and `beside`, rows by name (null:
    there is none); or `training`, a train stage alone. A record without evaluations has only
    figures of its training.

    Raises:
        UserError: a record, a stage, a receiver or a method that does not exist.
    """
    names = [spec["record"]] if "record" in spec else list(spec["records"])
    seeds = []
    for name in names:
        if name not in records:
            raise UserError(f"{name}: no such record; `python -m lw_jax.results record` makes it")
        record = records[name]
        if (trained := spec.get("training")) is not None:
            if trained not in record["training"]:
                raise UserError(f"{name}: no training {trained!r}")
            alone = {**record, "training": {trained: record["training"][trained]}}
            seeds.append(Seed(alone, {}, ""))
            continue
        held = record["evaluations"]
        if not held and "stage" not in spec:
            seeds.append(Seed(record, {}, ""))
            continue
        stage = spec.get("stage", list(held)[-1])
        if stage not in held:
            raise UserError(f"{name}: no evaluation {stage!r}; there are {', '.join(held)}")
        receivers = held[stage]["receivers"]
        receiver = spec.get("receiver", next(iter(receivers)))
        if receiver not in receivers:
            raise UserError(f"{name}: no receiver {receiver!r}; one of {', '.join(receivers)}")
        seeds.append(Seed(record, held[stage], receiver))
    beside = {
        name: None if other is None else read_row(records, other)
        for name, other in spec.get("beside", {}).items()
    }
    row = Row(str(spec.get("label", names[0])), tuple(seeds), beside, spec.get("method", "latent"))
    if "method" in spec and any(seed.method(row.method) is None for seed in seeds):
        raise UserError(f"{names[0]}: no method {row.method!r} of receiver {seeds[0].receiver!r}")
    return row
