"""What a metric is, and what it sees.

A file of this folder with `METRIC = Metric(...)` is a metric, one with `METRICS = (...)` several
that are measured together. The table, `metrics.json`, the history and the records of results take
them from here. Nothing in this folder needs jax: pages of results are written without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lw_jax.data.example import Example

Values = tuple[Sequence[float], Sequence[float]]
"""Per row: the sum over the row's parts, and how many parts it has (0: the row does not count)."""


Ended = Literal["eos", "stop", "limit"]
"""What ended an answer: EOS, a stop string, or neither: it ran into the most tokens."""


@dataclass(frozen=True)
class Prediction:
    """What one method says about one example, and how it scores the gold answer.

    Attributes:
        text: decoded output, up to the first stop.
        nll: summed over the gold tokens (EOS included), nats.
        tokens: how many gold tokens there are.
        first_rank: rank of the first gold token that is no space (0: the argmax).
        argmax: every gold token is the argmax when the gold ones before it are given; in EOS's
            place a token with which an answer stops is as good.
        same: the decoded ids are the gold ids, to the same end; None where decoding could not have
            written them (too few tokens, a stop in them, or not plain greedy).
        columns: receiver columns of the message.
        wire_bytes: what the message costs on the wire.
        nats: log-probability of each answer to choose from, EOS included; empty: nothing is chosen.
        ended: what ended the output.
        end_nll: nats of the last gold token, EOS.
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
    ended: Ended = "eos"
    end_nll: float = 0.0

    @property
    def choice(self) -> str | None:
        """The candidate that is most probable as a whole answer; the first of those alike.

        Not by its length: whole answers exclude each other, and a trained receiver was trained for
        exactly these probabilities.
        """
        return max(self.nats, key=lambda answer: self.nats[answer]) if self.nats else None


@dataclass(frozen=True)
class Rows:
    """What one method has said of all rows.

    Attributes:
        examples: the rows.
        said: row by row what was said.
        ends_in_number: whether an answer is a worked solution that ends in its number, as the data
            set says (`lw_jax.data.base.DataSet`).
        shared: what metrics that are measured together have found already.
    """

    examples: Sequence[Example]
    said: Sequence[Prediction]
    ends_in_number: bool = False
    shared: dict[str, Any] = field(default_factory=dict)

    def each(self, value: Callable[[Example, Prediction], float]) -> Values:
        """One part a row: `value` of every row."""
        pairs = zip(self.examples, self.said, strict=True)
        return [value(e, p) for e, p in pairs], [1] * len(self.said)

    def together(self, key: str, find: Callable[[Rows], Any]) -> Any:
        """What `find` gives of these rows, found once."""
        if key not in self.shared:
            self.shared[key] = find(self)
        return self.shared[key]


@dataclass(frozen=True)
class Metric:
    """A figure of a method.

    Attributes:
        name: its key in `metrics.json`.
        order: its place among the metrics.
        per_row: row by row its total and how many parts that is of; the figure is the sum of the
            first over the sum of the second, and has an interval. None: `whole` gives it.
        whole: the figure of all rows at once, which then has no interval.
        applies: whether these rows have it; None: all rows do.
        share: whether it lies between 0 and 1.
        heading: in the table on the terminal; "" for its name.
        title: in the pages of results; "" for its name.
        column: its place in the table on the terminal; None: it is in `metrics.json` alone.
        interval: whether the table shows its interval.
        history: whether `metrics_history.jsonl` has it.
        recorded: whether a record of results keeps it.
        says: what it is, in the line under the table; "" for nothing.
        floor: where `data` of `metrics.json` says what other contexts' answers have of it by
            chance: among `entities` or `answers`; "" for nowhere.
    """

    name: str
    order: int
    per_row: Callable[[Rows], Values] | None = None
    whole: Callable[[Rows], float] | None = None
    applies: Callable[[Rows], bool] | None = None
    share: bool = True
    heading: str = ""
    title: str = ""
    column: int | None = None
    interval: bool = False
    history: bool = False
    recorded: bool = True
    floor: str = ""
    says: str = ""

    @property
    def always(self) -> bool:
        """Whether all rows have it."""
        return self.applies is None

    def of(self, rows: Rows) -> bool:
        """Whether these rows have it."""
        return self.applies is None or self.applies(rows)
