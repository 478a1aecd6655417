"""What an evaluation writes: the table on the terminal, metrics.json, predictions.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lw_jax.data.example import Example
from lw_jax.evaluate.figures import Said
from lw_jax.evaluate.metrics import columns, squad
from lw_jax.evaluate.metrics import metrics as all_metrics
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.summary import CHOICE
from lw_jax.evaluate.verdict import RAN_ON

_WIDEST = 400


def table(receiver: str, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """One receiver's methods, a line each; intervals where they matter most."""
    first = next(iter(methods.values()))
    names = [metric.name for metric in columns() if metric.name in first]
    title = f"receiver {receiver}: {first['n']} rows, 95 % intervals"
    shown = Table(title=title, box=None, padding=(0, 2, 0, 0))
    shown.add_column("method", no_wrap=True)
    headings = [all_metrics()[name].heading or name for name in names]
    for heading in (*headings, "columns", "seconds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for method, figures in methods.items():
        shown.add_row(
            method,
            *(_figure(figures, name) for name in names),
            f"{figures['columns']:.1f}",
            f"{figures['seconds']:.1f}",
        )
    return shown


def show(console: Console, metrics: Mapping[str, Any]) -> None:
    """The end of an evaluation on the terminal: figures, what they cost, what they mean."""
    for receiver, methods in metrics["receivers"].items():
        shown = table(receiver, methods)
        # A figure is never cut off: a narrow terminal wraps the lines.
        wide = Measurement.get(console, console.options.update(width=_WIDEST), shown).maximum
        Console(file=console.file, width=max(wide, console.width)).print(shown)
        for line in [
            legend(methods),
            *lines(receiver, metrics),
            *notes(receiver, methods),
            *alarms(receiver, methods),
        ]:
            style = "bold red" if line.startswith("ALARM") else None
            console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    said = [together(metrics["joint"])] if metrics["joint"] else []
    rows, dropped = metrics["data"]["rows"], metrics["data"]["dropped"]
    if dropped:
        said.append(f"{dropped} of {rows + dropped} rows were too long, and are left out.")
    for line in said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def legend(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """What the columns of the table are."""
    first = next(iter(methods.values()))
    parts = [f"{m.heading or m.name}: {m.says}" for m in columns() if m.name in first and m.says]
    parts += ["columns: positions of the receiver that the message takes", "seconds: for all rows"]
    return f"{'; '.join(parts)}. More is better, but for nll, columns and seconds."


def together(joint: Mapping[str, Any]) -> str:
    """What several receivers have from one latent."""
    names = {"rescored": "chosen by all of them", "oracle": "the best of their answers"}
    parts = [f"{names[k]}: EM {_figure(figures, 'em')}" for k, figures in joint.items()]
    return f"The receivers together: {'; '.join(parts)}."


def lines(receiver: str, metrics: Mapping[str, Any]) -> list[str]:
    """In words: whether the wire carries content, what it replaces, where the bridge comes from."""
    verdict = metrics["verdict"].get(receiver, {})
    found = [*verdict.get("words", ()), *verdict.get(CHOICE, {}).get("words", ())]
    found += metrics.get("normalised", {}).get(receiver, {}).get("words", ())
    packed = metrics["compression"]
    if packed:
        at, size = packed["receivers"][receiver], packed["latent"]["bytes"]
        slot, sent = packed["latent"]["characters_per_slot"], packed["latent"]["sent_as"]
        a_slot = f", {slot:.1f} characters a slot" if packed["latent"]["slots"] else ""
        more, matched = "", ""
        if at.get("adapter_keys"):
            keys, layers = at["adapter_keys"], at["adapter_layers"]
            more = f", and {keys * layers:.1f} keys in {layers} layers (adapters: {keys:.1f} each),"
            matched = (
                f" Token budgets are matched to the {at['columns']:.1f} columns; those by K/V "
                f"entries (token_budget_kv_*) to the {at['kv_tokens']:.1f} tokens that hold as "
                "many."
            )
        found.append(
            f"{at['columns']:.1f} columns{more} stand for {at['receiver_tokens']:.1f} receiver "
            "tokens: "
            f"{at['tokens_per_column']:.2f} tokens and {at['characters_per_column']:.1f} "
            f"characters a column{a_slot}. Bytes: text {size['utf8']:.0f}, "
            f"zlib {size['zlib']:.0f}, latent {size[sent]:.0f} as sent ({sent}), "
            f"{size['float16']:.0f} at float16, {size['int4']:.0f} at int4.{matched}"
        )
    if candidates := metrics["data"]["candidates"]:
        found.append(
            f"choice: the most probable of {', '.join(candidates)}; always the most frequent of "
            f"them would be right in {metrics['data']['most_frequent']:.3f} of the rows."
        )
    floor = metrics["data"]["entity_floor"].get("entities")
    if floor is not None and any("entities" in m for m in metrics["receivers"][receiver].values()):
        found.append(f"Entities that another context's text has by chance: {floor:.3f}.")
    for name, probe in metrics.get("probe", {}).items():
        if name in ("sender", receiver):
            low, high = probe["ci"]
            found.append(
                f"Linear probe of {name}, layer {probe['layer']}: accuracy {probe['accuracy']:.3f} "
                f"[{_short(low)} {_short(high)}], fitted on {probe['train_rows']} training rows."
            )
    slots = metrics["receivers"][receiver].get("latent", {}).get("slots")
    if slots and "rms_ratio" in slots:
        found.append(
            f"Soft tokens: {slots['rms_ratio']:.3g} times as loud as embeddings, cosine to the "
            f"nearest {slots['nearest_cosine']:.2f}; of a text's {slots['count']:.1f} cosine "
            f"{slots['within_cosine']:.2f}, effective rank {slots['within_rank']:.1f}; of two "
            f"texts cosine {slots['between_cosine']:.2f}."
        )
    found += [
        f"ALARM {a['name']} in training: {_when(a)} of stage {a['stage']}."
        for a in metrics["alarms"]
    ]
    bridge = metrics["parameters"]
    if bridge:
        found.append(
            f"Bridge: {bridge['total']:,} parameters, stage {bridge['stage']}, "
            f"step {bridge['step']}, {bridge['origin']}."
        )
    found += [
        f"{name}: {other['total']:,} parameters, stage {other['stage']}, step {other['step']}, "
        f"{other['origin']}."
        for name, other in metrics.get("rivals", {}).items()
    ]
    return found


def _when(alarm: Mapping[str, Any]) -> str:
    if alarm["times"] == 1:
        return f"once, after step {alarm['first']}"
    return f"{alarm['times']} times from step {alarm['first']} to {alarm['last']}"


def notes(receiver: str, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines about methods whose outputs did not end by themselves, or say nothing."""
    found = []
    for method, figures in methods.items():
        if left := figures.get("left_out"):
            found.append(
                f"NOTE {receiver}, {method}: {left} of {left + figures['n']} rows do not count, "
                "their article has no other context among the rows."
            )
        late, empty = figures.get("ended", {}).get("limit", 0.0), figures.get("empty", 0.0)
        if late > RAN_ON:
            found.append(
                f"NOTE {receiver}, {method}: {late:.0%} of its answers ended neither at EOS nor at "
                "a stop, they ran into decode.max_new_tokens: its figures are of answers cut off "
                "or run on (raise it, or see decode.stop)."
            )
        if empty > RAN_ON:
            found.append(
                f"NOTE {receiver}, {method}: {empty:.0%} of its answers are empty, they begin with "
                "EOS or a stop (decode.stop)."
            )
    return found


def alarms(receiver: str, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines to shout under the table: scorer and decoder that disagree, or were not compared."""
    blind = [method for method, figures in methods.items() if not figures["compared"]]
    unknown = [
        f"ALARM {receiver}: of {', '.join(blind)} scorer and decoder were compared in no row, so "
        "nothing says that they saw the same sequence: decoding is not plain greedy (decode), or "
        "no gold answer can be written (decode.max_new_tokens, decode.stop)"
    ]
    return [
        *(unknown if blind else []),
        *(
            f"ALARM {receiver}, {method}: in {figures['disagreements']} of {figures['compared']} "
            "rows the argmax of the scorer and the greedy output are not the same answer"
            for method, figures in methods.items()
            if figures["disagreements"]
        ),
    ]


def predictions(
    examples: Sequence[Example],
    said: Said,
    relayed: Sequence[str] = (),
    rescored: Sequence[str] | None = None,
    counted: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[dict[str, Any]]:
    """The lines of predictions.jsonl: an example, its gold, every method's output (of `counted`
    only in the rows that count), what the sender wrote for `relay`, and what several receivers
    chose together."""
    some = {name: frozenset(rows) for name, rows in (counted or {}).items()}
    for i, example in enumerate(examples):
        yield {
            "id": example.id,
            **({"row_id": example.row_id} if example.row_id else {}),
            "context_id": example.context_id,
            **({"article": example.article} if example.article else {}),
            "level": example.level,
            "context": example.context,
            "question": example.question,
            "answers": list(example.answers),
            **({"relayed": relayed[i]} if relayed else {}),
            **({} if rescored is None else {"joint": rescored[i]}),
            "receivers": {
                receiver: {
                    name: _said(example, rows[i])
                    for name, (rows, _) in methods.items()
                    if name not in some or i in some[name]
                }
                for receiver, methods in said.items()
            },
        }


def history(run: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The line of metrics_history.jsonl: one for each finished evaluation of any run."""
    kept = [name for name, metric in all_metrics().items() if metric.history]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run,
        "stage": metrics["stage"],
        "kind": "evaluate",
        "step": metrics["parameters"].get("step"),
        "rows": metrics["data"]["rows"],
        "receivers": {
            receiver: {name: {k: m[k] for k in kept if k in m} for name, m in methods.items()}
            for receiver, methods in metrics["receivers"].items()
        },
        "carries": {receiver: v["carries"] for receiver, v in metrics["verdict"].items()},
    }


def _figure(figures: Mapping[str, Any], name: str) -> str:
    value = f"{figures[name]:.3f}"
    if not all_metrics()[name].interval:
        return value
    low, high = figures["ci"][name]
    if not math.isfinite(low):  # it cannot be told
        return value
    return f"{value} [{_short(low)} {_short(high)}]"


def _short(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")


def _said(example: Example, p: Prediction) -> dict[str, Any]:
    return {
        "text": p.text,
        "em": squad.exact_match(p.text, example.answers),
        "f1": squad.f1(p.text, example.answers),
        "nll": p.nll / max(1, p.tokens),
        "tokens": p.tokens,
        "first_rank": p.first_rank,
        "ended": p.ended,
        **({"choice": p.choice, "nats": dict(p.nats)} if p.nats else {}),
    }
