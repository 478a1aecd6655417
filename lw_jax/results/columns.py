"""The columns that a table can have: a heading, and a function from a row to its cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lw_jax.evaluate.metrics import metrics
from lw_jax.results.row import SHARE, Figure, Row, Seed, combine

BUDGETS = ("token_budget_first", "token_budget_last")
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: heading in the table.
        cell: text of a row's cell.
        training: whether it is about training, so that rows without an evaluation have it, too.
    """

    heading: str
    cell: Callable[[Row], str]
    training: bool = False

    def text(self, row: Row | None) -> str:
        """The row's cell; `MISSING` without a row, or without an evaluation that it needs."""
        if row is None or not (self.training or all(seed.evaluation for seed in row.seeds)):
            return MISSING
        return self.cell(row)


def _of(method: str, metric: str, heading: str = "") -> Column:
    """A metric of a method; by default called by both."""
    heading = heading or f"{method.replace('_', ' ')} {metrics()[metric].title or metric}"
    return Column(heading, lambda row: _text(row.figure(method, metric)))


def _own(metric: str) -> Column:
    """A metric of the row's own method."""
    heading = metrics()[metric].title or metric
    return Column(heading, lambda row: _text(row.figure(row.method, metric)))


def _normalised(figure: str, heading: str) -> Column:
    """The normalised score of the row's own method; of several seeds it has the interval that so
    many allow (`lw_jax.results.row.combine`)."""

    def cell(row: Row) -> str:
        held = [
            s.evaluation.get("normalised", {}).get(s.receiver, {}).get(row.method, {}).get(figure)
            for s in row.seeds
        ]
        if any(one is None for one in held):
            return MISSING
        found = [one for one in held if one is not None]
        return _text(combine([one["share"] for one in found], [one["ci"] for one in found]))

    return Column(heading, cell)


def of_text(row: Row) -> list[float] | None:
    """F1 of the row's own method over that of the best tuned text, which has a share of 1, of every
    seed; None: one has no such text."""
    found = []
    for s in row.seeds:
        ends = s.evaluation.get("normalised", {}).get(s.receiver, {})
        best = next((n for n, one in ends.items() if one.get("f1", {}).get("share") == 1), "")
        own, whole = s.method(row.method), s.method(best)
        if own is None or whole is None or not whole.get("f1"):
            return None
        found.append(own["f1"] / whole["f1"])
    return found


def _of_text(row: Row) -> str:
    found = of_text(row)
    return MISSING if found is None else _text(combine(found, [None] * len(found)))


def column(name: str) -> Column | None:
    """The column of that name in `COLUMNS`, or `METHOD.METRIC` of any method and metric there is,
    or `line.FIGURE`, a figure of the row's own line of a probe's table; None: there is none."""
    if name in COLUMNS:
        return COLUMNS[name]
    method, _, metric = name.partition(".")
    if method == "line" and metric:
        return Column(metric.replace("_", " "), lambda row: _text(row.figure(row.method, metric)))
    return _of(method, metric) if method and metric in metrics() else None


def _text(figure: Figure | None) -> str:
    return MISSING if figure is None else str(figure)


def _mean(row: Row, value: Callable[[Seed], float | None], form: str) -> str:
    found = [value(seed) for seed in row.seeds]
    held = [v for v in found if v is not None]
    return form.format(sum(held) / len(held)) if held else MISSING


def share_of_text(row: Row, metric: str = "em") -> float | None:
    """The latent's figure divided by the text's."""
    latent, text = row.figure("latent", metric), row.figure("text", metric)
    return None if latent is None or text is None or not text.mean else latent.mean / text.mean


def best_budget(row: Row, metric: str = "em") -> Figure | None:
    """The better of the two truncations."""
    found = [f for name in BUDGETS if (f := row.figure(name, metric)) is not None]
    return max(found, key=lambda f: f.mean) if found else None


def _share(row: Row) -> str:
    share = share_of_text(row)
    return MISSING if share is None else f"{share:.1%}"


def _minutes(row: Row) -> str:
    def value(seed: Seed) -> float | None:
        stages = seed.record["training"].values()
        held = [s["seconds"] for s in stages if s["seconds"] is not None]
        return sum(held) / 60 if held else None

    return _mean(row, value, "{:.1f}")


def _alarms(row: Row) -> str:
    """Each alarm with the first step at which it fired, the earliest over the seeds.

    If an alarm was silent at the end of all seeds, the last step at which it fired is added, the
    latest over the seeds. "none" needs seeds with evaluations during training, where alarms can
    fire.
    """
    fired: dict[str, int] = {}
    ended: dict[str, list[int | None]] = {}
    watched = 0
    for seed in row.seeds:
        stages = seed.record["training"].values()
        watched += any(stage["watched"] for stage in stages)
        for stage in stages:
            for name, step in stage["alarms"].items():
                fired[name] = min(step, fired.get(name, step))
                last = stage.get("alarms_last", {}).get(name)
                silent = last is not None and last < stage["watched"]
                ended.setdefault(name, []).append(last if silent else None)
    if not watched:
        return MISSING
    named = sorted(fired.items(), key=lambda item: item[1])
    found = ", ".join(f"{name} ({_span(step, ended[name])})" for name, step in named) or "none"
    return found if watched == len(row.seeds) else f"{found} ({watched} of {len(row.seeds)} seeds)"


def _span(first: int, ended: Sequence[int | None]) -> str:
    steps = [step for step in ended if step is not None]
    return f"{first} to {max(steps)}" if len(steps) == len(ended) else str(first)


def _probe(tokenizer: str, heading: str) -> Column:
    def cell(row: Row) -> str:
        found = [_probed(seed, tokenizer) for seed in row.seeds]
        held = [p for p in found if p is not None]
        return (
            str(combine([p["accuracy"] for p in held], [p["ci"] for p in held], SHARE))
            if held
            else MISSING
        )

    return Column(heading, cell)


def _probed(seed: Seed, tokenizer: str) -> Mapping[str, Any] | None:
    name = seed.receiver if tokenizer == "receiver" else tokenizer
    found: Mapping[str, Any] | None = seed.evaluation.get("probe", {}).get(name)
    return found


def _steps(seed: Seed) -> float | None:
    """Steps of all train stages; None: a run without one."""
    stages = seed.record["training"].values()
    return sum(stage["steps"] for stage in stages) if stages else None


LEARNED = 0.2
"""Training loss a token that no bridge had before it told people apart (docs/results/ablations.md).
"""


def _learned(row: Row) -> str:
    """Steps of all train stages until the last one's loss was first logged below `LEARNED`.

    It is the mean over the seeds, if all reached it.
    """
    found = []
    for seed in row.seeds:
        before = sum(s["steps"] for s in list(seed.record["training"].values())[:-1])
        course = seed.training.get("course", [])
        reached = next((step for step, loss in course if loss < LEARNED), None)
        if reached is None:
            return MISSING
        found.append(before + reached)
    return f"{sum(found) / len(found):.0f}"


def _joint(which: str, heading: str) -> Column:
    """A column about several receivers of one latent."""

    def cell(row: Row) -> str:
        held = [f for s in row.seeds if (f := s.evaluation.get("joint", {}).get(which)) is not None]
        if len(held) < len(row.seeds):
            return MISSING
        return str(combine([f["em"] for f in held], [f["ci"]["em"] for f in held], SHARE))

    return Column(heading, cell)


def _content(row: Row) -> str:
    """Whether the wire carries content, and the share that decides it.

    The share is (matched - deranged) / (matched - none), of both of two seeds, of more their mean.
    A seed has one where the interval of matched - none excludes 0 (`lw_jax.evaluate.verdict`); if
    only some have, it is said of how many.
    """
    verdicts = [seed.evaluation["verdict"][seed.receiver] for seed in row.seeds]
    shares = [v["share"] for v in verdicts if v["share"] is not None]
    carrying = sum(v["carries"] for v in verdicts)
    said = {0: "no", len(verdicts): "yes"}.get(carrying, f"{carrying} of {len(verdicts)} seeds")
    if not shares:
        return said
    shown = shares if len(verdicts) == 2 else [fmean(shares)]
    text = ", ".join(f"{share:.2f}" for share in shown)
    return f"{said} ({text}{'' if len(shares) == len(verdicts) else _of_some(len(shares))})"


def _of_some(seeds: int) -> str:
    return f" of {seeds} seed{'s' if seeds > 1 else ''}"


def _floor(key: str) -> Callable[[Row], str]:
    """A column of the overlap with other contexts' gold answers, by chance."""

    def value(seed: Seed) -> float | None:
        found: float | None = seed.evaluation["data"].get("entity_floor", {}).get(key)
        return found

    return lambda row: _mean(row, value, "{:.3f}")


def _within(row: Row) -> str:
    """Share of the gold answers that fit into the maximum number of new tokens."""
    held = [method for seed in row.seeds if (method := seed.method("latent")) is not None]
    found = [m["compared"] / m["n"] for m in held if "compared" in m]
    return f"{sum(found) / len(found):.2f}" if found else MISSING


def _columns(row: Row) -> str:
    found = row.figure("latent", "columns")
    return MISSING if found is None else f"{found.mean:.0f}"


def _bytes(codec: str) -> Column:
    def value(seed: Seed) -> float | None:
        held = seed.evaluation["compression"]["latent"]["bytes"]
        found: float | None = held.get(codec)
        return found

    return Column(f"bytes, {codec}", lambda row: _mean(row, value, "{:.0f}"))


def _code(key: str, heading: str, form: str) -> Column:
    """A column about the codes that a batch of latents uses (`lw_jax.bottlenecks.codes.usage`)."""

    def value(seed: Seed) -> float | None:
        found: float | None = (seed.method("latent") or {}).get("slots", {}).get(f"codes_{key}")
        return found

    return Column(heading, lambda row: _mean(row, value, form))


def _seconds(method: str, part: str, heading: str) -> Column:
    """Seconds of a method for all rows; for the relay also the parts for writing and reading."""

    def value(seed: Seed) -> float | None:
        found: float | None = (seed.method(method) or {}).get(part)
        return found

    return Column(heading, lambda row: _mean(row, value, "{:.1f}"))


COLUMNS: dict[str, Column] = {
    "em": _own("em"),
    "method_f1": _own("f1"),
    "method_nll": _own("nll"),
    "text": _of("text", "em"),
    "latent": _of("latent", "em"),
    "share": Column("of text", _share),
    "budget": Column("better token budget EM", lambda row: _text(best_budget(row))),
    "budget_bytes": _of("token_budget_bytes", "em", "EM of as many bytes of text"),
    "int8": _of("latent_int8", "em", "at int8"),
    "int6": _of("latent_int6", "em", "at int6"),
    "int4": _of("latent_int4", "em", "at int4"),
    "deranged": _of("deranged", "em"),
    "no_message": _of("no_message", "em"),
    "f1": _of("latent", "f1"),
    "text_f1": _of("text", "f1"),
    "deranged_f1": _of("deranged", "f1"),
    "nll": _of("latent", "nll"),
    "deranged_nll": _of("deranged", "nll"),
    "entities": _of("latent", "entities", "entities"),
    "text_entities": _of("text", "entities", "entities from text"),
    "deranged_entities": _of("deranged", "entities", "entities, deranged"),
    "source_entities": _of("latent", "source_entities", "of the text's entities"),
    "deranged_source_entities": _of(
        "deranged", "source_entities", "of the text's entities, deranged"
    ),
    "mean_source_entities": _of("mean", "source_entities", "of the text's entities, mean latent"),
    "source_entities_floor": Column("the same by chance", _floor("source_entities")),
    "content": Column("carries content (share)", _content),
    "within": Column("gold answers within the limit", _within),
    "normalised": _normalised("f1", "share of the text's worth, F1"),
    "of_text": Column("F1 over the text's", _of_text),
    "normalised_nll": _normalised("nll", "share of the text's worth, nats"),
    "final": _of("latent", "final", "accuracy"),
    "partial": _of("latent", "partial", "partial"),
    "distinct": _of("latent", "distinct", "distinct outputs"),
    "loops": _of("latent", "loops", "loops"),
    "tokens_per_column": Column(
        "tokens a column",
        lambda row: _mean(row, lambda s: s.compression["tokens_per_column"], "{:.2f}"),
    ),
    "characters_per_column": Column(
        "characters a column",
        lambda row: _mean(row, lambda s: s.compression["characters_per_column"], "{:.1f}"),
    ),
    "bytes_text": _bytes("utf8"),
    "bytes_zlib": _bytes("zlib"),
    "bytes_float16": _bytes("float16"),
    "bytes_int8": _bytes("int8"),
    "bytes_int6": _bytes("int6"),
    "bytes_int4": _bytes("int4"),
    "bytes_codes": _bytes("codes"),
    "code_perplexity": _code("perplexity", "perplexity of a code", "{:.2f}"),
    "code_distinct": _code("distinct", "different codes over slots", "{:.3f}"),
    "probe_sender": _probe("sender", "linear probe, sender"),
    "probe_receiver": _probe("receiver", "linear probe, receiver"),
    "relay": _of("relay", "em"),
    "choice": _of("latent", "choice", "latent, choice"),
    "text_choice": _of("text", "choice", "text, choice"),
    "budget_choice": Column(
        "better token budget, choice", lambda row: _text(best_budget(row, "choice"))
    ),
    "relay_choice": _of("relay", "choice", "relay, choice"),
    "no_message_choice": _of("no_message", "choice", "no message, choice"),
    "deranged_choice": _of("deranged", "choice", "deranged, choice"),
    "relay_writing": _seconds("relay", "seconds_writing", "relay: s to write"),
    "relay_reading": _seconds("relay", "seconds_reading", "relay: s to read"),
    "latent_seconds": _seconds("latent", "seconds", "latent: s in all"),
    "joint": _joint("rescored", "EM chosen together"),
    "oracle": _joint("oracle", "EM of the best receiver's answer"),
    "columns": Column("columns", _columns),
    "parameters": Column(
        "parameters",
        lambda row: _mean(row, lambda s: s.evaluation["parameters"].get("total"), "{:,.0f}"),
    ),
    "steps": Column(
        "steps",
        lambda row: _mean(row, _steps, "{:.0f}"),
        training=True,
    ),
    "seconds_per_step": Column(
        "s a step",
        lambda row: _mean(row, lambda s: s.training.get("seconds_per_step"), "{:.3f}"),
        training=True,
    ),
    "looks": Column(
        "looks, of the time",
        lambda row: _mean(row, lambda s: s.training.get("looks"), "{:.1%}"),
        training=True,
    ),
    "loss": Column(
        "last loss",
        lambda row: _mean(row, lambda s: s.training.get("loss"), "{:.3f}"),
        training=True,
    ),
    "learned": Column(f"steps to a loss of {LEARNED}", _learned, training=True),
    "minutes": Column("minutes", _minutes, training=True),
    "alarms": Column("alarms (from step)", _alarms, training=True),
    "n": Column("n", lambda row: str(row.seeds[0].evaluation["data"]["rows"])),
    "seeds": Column("seeds", lambda row: str(len(row.seeds)), training=True),
    "device": Column("device", lambda row: row.seeds[0].evaluation["versions"]["device"]),
}
"""By the name that a page's source uses."""
