"""A row of a table: one receiver's figures in one evaluation, of one or several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from lw_jax.errors import UserError


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
        return combine([m[metric] for m in held], [m.get("ci", {}).get(metric) for m in held])


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        mean: mean over the seeds.
        low: lower end of the 95 % interval of that mean; None: there is none.
        high: upper end; None: there is none.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def combine(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> Figure:
    """The mean of the seeds' values.

    The half-width of its interval adds two parts in squares: the sampling of rows (each seed's
    half-widths, added in squares) and the spread between seeds (standard error of the mean, times
    1.96).
    """
    mean = sum(values) / len(values)
    if any(i is None for i in intervals):
        return Figure(mean)
    if len(values) == 1:
        assert intervals[0] is not None
        return Figure(mean, intervals[0][0], intervals[0][1])
    spread = sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    below = [v - i[0] for v, i in zip(values, intervals, strict=True) if i is not None]
    above = [i[1] - v for v, i in zip(values, intervals, strict=True) if i is not None]

    def half(widths: Sequence[float]) -> float:
        rows = sqrt(sum(w * w for w in widths)) / len(widths)
        return sqrt(rows * rows + (1.96 * spread) ** 2)

    return Figure(mean, mean - half(below), mean + half(above))


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
