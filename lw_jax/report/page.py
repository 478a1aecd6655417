"""From what was read of a run to one page of HTML: no network, no scripts needed to read it.

Everything that a run holds is text to the page: templates escape it, and the page's policy runs no
script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lw_jax import __version__
from lw_jax.config.yaml_files import dumps
from lw_jax.evaluate import report as terminal
from lw_jax.evaluate.methods import methods
from lw_jax.evaluate.metrics import columns
from lw_jax.evaluate.metrics import metrics as all_metrics
from lw_jax.evaluate.summary import CHOICE
from lw_jax.report.read import Read, read
from lw_jax.report.svg import Chart, Series, interval, number
from lw_jax.report.words import marked
from lw_jax.utils.files import write_text

FILE = "report.html"
ROWS = 50
"""Rows that are shown side by side."""
MOST_TEXT = 4000
"""Characters of a text that are shown."""
MOST_MORE = 60
"""Charts below "more curves"."""
APART = 1.1
"""Two ratios that differ by less are one: other rows have other lengths."""
BUDGET = "token_budget"
SHOWN = ("text", BUDGET, "latent", "deranged")
_PLAIN = str.maketrans({"\n": " ", "`": None})
_TEMPLATES = Path(__file__).parent / "templates"


def write(home: Path, config: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` into a run's directory; its path.

    Args:
        home: the directory.
        config: of the run, if it is known; None: its `config.yaml` says.

    Raises:
        UserError: it is no run directory, or a file in it is damaged.
    """
    path = home / FILE
    write_text(path, html(read(home, config)))
    return path


def html(run: Read) -> str:
    """The page of a run."""
    return render(
        "report.html",
        title=run.name,
        run=run,
        metrics=run.metrics,
        config=dumps(dict(run.config)),
        receivers=[_receiver(run, name) for name in run.metrics.get("receivers", {})],
        facts=facts(run),
        stages=_stages(run),
        curves=[_curves(run, stage) for stage in dict.fromkeys(e["stage"] for e in run.journal)],
        ratios=_ratios(run),
        maps=_maps(run),
        rows=[_row(run, row, name) for row in run.rows[:ROWS] for name in row["receivers"]],
        most_rows=ROWS,
        origins=run.metrics.get("data", {}).get("origins", []),
    )


def render(template: str, **context: Any) -> str:
    """A template with the page's style, script and policy."""
    script = _file("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_file("style.css")),
            script=Markup(script),
            policy=(
                f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
                f"script-src 'sha256-{digest}'"
            ),
            version=__version__,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **context,
        )
    )


@cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    return found


@cache
def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


# What was run


def facts(run: Read) -> list[tuple[str, str]]:
    """What was run, and on what: (name, value)."""
    config, metrics = run.config, run.metrics
    found: list[tuple[str, str]] = []
    sender = config.get("sender")
    if sender:
        found.append(("Sender", _model(sender)))
    found += [
        (f"Receiver {name}", _model(model)) for name, model in config.get("receivers", {}).items()
    ]
    bridge = config.get("bridge") or {}
    for part in ("source", "sources", "compressor", "refiner", "bottleneck", "reader"):
        if bridge.get(part):
            found.append((part.capitalize(), _flow(bridge[part])))
    if bridge.get("latent_dim"):
        found.append(("Slot width", str(bridge["latent_dim"])))
    if metrics.get("parameters"):
        about = metrics["parameters"]
        found.append(
            (
                "Bridge",
                f"{about['total']:,} parameters, stage {about['stage']}, step {about['step']}, "
                f"{about['origin']}",
            )
        )
    found.append(("Rows", _flow(config.get("data") or {})))
    if data := metrics.get("data"):
        found.append(
            (
                "Evaluated",
                f"{data['rows']} rows of {data['contexts']} texts, split {data['split']}, "
                f"seed {data['seed']}",
            )
        )
    versions = metrics.get("versions", {})
    if versions:
        found.append(("Device", versions.get("device", "")))
        commit = f", commit {versions['commit'][:12]}" if versions.get("commit") else ""
        found.append(("Code", f"lw_jax {versions.get('lw_jax', '')}{commit}"))
        rest = [f"{k} {v}" for k, v in versions.items() if k not in ("device", "lw_jax", "commit")]
        found.append(("Packages", ", ".join(rest)))
    for name, print_ in metrics.get("fingerprints", {}).items():
        found.append((f"Fingerprint of {name}", print_))
    return [(name, value) for name, value in found if value]


def run_of_page(run: Read) -> str:
    """A run in a line."""
    models = [run.config.get("sender") or {}, *run.config.get("receivers", {}).values()]
    paths = " → ".join(str(model["path"]) for model in models if model.get("path"))
    return f"{run.name}: {paths}"


def _model(model: Mapping[str, Any]) -> str:
    held = [str(model[k]) for k in ("dtype", "quant", "revision") if model.get(k)]
    more = ", ".join(one for one in held if one != "none")
    return f"{model.get('path', '')}{f' ({more})' if more else ''}"


def _flow(value: Any) -> str:
    return dumps(_given(value), flow=True).strip()


def _given(value: Any) -> Any:
    """The same without options that are null or empty."""
    if isinstance(value, Mapping):
        return {k: _given(v) for k, v in value.items() if v not in (None, [], {}, ())}
    return value


def _stages(run: Read) -> list[dict[str, Any]]:
    found = []
    for name, stage in (run.config.get("stages") or {}).items():
        kind = next((k for k, v in stage.items() if v is not None), "")
        found.append({"name": name, "kind": kind, "seconds": run.seconds.get(name)})
    return found


# The table


def _receiver(run: Read, name: str) -> dict[str, Any]:
    methods_ = run.metrics["receivers"][name]
    first = next(iter(methods_.values()))
    names = [m.name for m in columns() if m.name in first]
    known = all_metrics()
    heads = [
        {"title": known[n].heading or n, "says": known[n].says or n, "interval": known[n].interval}
        for n in names
    ]
    verdict = run.metrics["verdict"].get(name, {})
    lines = terminal.lines(name, run.metrics)
    words = list(verdict.get("words", ()))
    return {
        "name": name,
        "n": first["n"],
        "heads": heads,
        "lines": [_line(method, found, names) for method, found in methods_.items()],
        "carries": verdict.get("carries"),
        "words": words,
        "said": [line for line in lines if line not in words],
        "notes": terminal.notes(name, methods_),
        "alarms": terminal.alarms(name, methods_),
        "cards": _cards(methods_),
        "card_metric": "choice among the candidates" if CHOICE in first else "exact match",
        "sizes": _sizes(run, name),
    }


def _line(method: str, found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    known, cells = all_metrics(), []
    for name in names:
        value, ci = found.get(name), found.get("ci", {}).get(name)
        cell = {"value": "–" if value is None else f"{value:.3f}", "ci": "", "strip": ""}
        told = ci is not None and None not in ci
        if value is not None and told and known[name].interval:
            cell["ci"] = f"{ci[0]:.3f} to {ci[1]:.3f}"
            cell["strip"] = interval(value, *ci) if known[name].share else ""
        cells.append(cell)
    return {
        "method": method,
        "about": about_method(method),
        "cells": cells,
        "columns": number(found["columns"]),
        "bytes": number(found["wire_bytes"]),
        "seconds": number(found["seconds"]),
    }


def about_method(name: str) -> str:
    """What a method is, in its file's words."""
    if name not in methods():
        return ""
    try:
        doc = importlib.import_module(f"lw_jax.evaluate.methods.{name}").__doc__ or ""
    except ImportError:  # it comes from outside the package
        return ""
    said = doc.strip().partition("\n\n")[0].partition(": ")[2].translate(_PLAIN)
    return said[:1].upper() + said[1:]


def _cards(methods_: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures that decide."""
    key = CHOICE if CHOICE in next(iter(methods_.values())) else "em"
    found = []
    for name, says in (
        ("text", "the whole text"),
        ("latent", "the latent"),
        (best_budget(methods_), "as many tokens of the text as the latent has columns"),
        ("deranged", "another text's latent"),
        ("no_message", "nothing"),
    ):
        if name in methods_ and key in methods_[name]:
            low, high = methods_[name]["ci"][key]
            found.append(
                {
                    "method": name,
                    "says": says,
                    "value": f"{methods_[name][key]:.3f}",
                    "ci": f"{low:.3f} to {high:.3f}",
                    "strip": interval(methods_[name][key], low, high),
                }
            )
    return found


def best_budget(methods_: Mapping[str, Mapping[str, Any]]) -> str:
    """The token budget that answers best; "" if there is none."""
    names = [n for n in methods_ if n.startswith(BUDGET) and "em" in methods_[n]]
    return max(names, key=lambda n: float(methods_[n]["em"]), default="")


def _sizes(run: Read, name: str) -> list[dict[str, Any]]:
    """Bytes and columns, as bars to scale."""
    packed = run.metrics.get("compression") or {}
    if name not in packed.get("receivers", {}):
        return []
    at, latent = packed["receivers"][name], packed["latent"]
    columns_ = [
        ("the text's tokens", at["receiver_tokens"], "plain"),
        ("the message's columns", at["columns"], "own"),
    ]
    if at.get("adapter_keys"):
        columns_.append(
            (
                f"keys that adapters read in each of {at['adapter_layers']} layers",
                at["adapter_keys"],
                "more",
            )
        )
    sent = latent["sent_as"]
    sizes = [("text, UTF-8", latent["bytes"]["utf8"], "plain")]
    sizes.append(("text, zlib", latent["bytes"]["zlib"], "plain"))
    sizes.append((f"latent as sent ({sent})", latent["bytes"][sent], "own"))
    sizes += [
        (f"latent at {codec}", size, "more")
        for codec, size in latent["bytes"].items()
        if codec not in ("utf8", "zlib", sent)
    ]
    return [
        {"title": "Positions in the receiver, mean of a text", "bars": _bars(columns_)},
        {"title": "Bytes of a message, mean of a text", "bars": _bars(sizes)},
    ]


def _bars(values: Iterable[tuple[str, float, str]]) -> list[dict[str, Any]]:
    held = list(values)
    most = max((value for _, value, _ in held), default=0.0) or 1.0
    return [
        {"label": label, "value": number(v), "width": f"{100 * v / most:.2f}", "look": look}
        for label, v, look in held
    ]


# Curves


def _curves(run: Read, stage: str) -> dict[str, Any]:
    """The charts of one stage's diagnostics."""
    lines = [e for e in run.journal if e["stage"] == stage]
    held: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
                held.setdefault(f"{line['kind']}/{key}", []).append((line["step"], float(value)))
    alarms = [(float(e["step"]), text) for e in lines for text in e.get("alarms", ()) if text]
    fired: dict[str, dict[str, Any]] = {}
    for step, text in alarms:
        name = text.partition(":")[0]
        one = fired.setdefault(name, {"name": name, "first": int(step), "times": 0})
        one |= {"last": int(step), "times": one["times"] + 1, "text": text.partition(": ")[2]}
    marks = [(step, text) for step, text in alarms]
    main: list[Chart] = []
    used: set[str] = set()

    def take(title: str, keys: Sequence[str], **options: Any) -> None:
        given = [k for k in keys if k in held]
        used.update(given)
        labels = _labels(given)
        series = [Series(labels[k], held[k], dots=k.startswith("evaluate/")) for k in given]
        if series:
            main.append(Chart(title, series, marks=marks, **options))

    take("Loss", ["train/loss"])
    shares = [k for k in held if k.startswith("train/share/")]
    take("Shares of the objectives in the loss", shares, low=0.0, high=1.0)
    for receiver in run.config.get("receivers", {}):
        at = f"evaluate/{receiver}"
        take(
            f"Accuracy of {receiver}, own text's latent and another's",
            [f"{at}/accuracy", f"{at}/deranged_accuracy"],
            low=0.0,
            high=1.0,
        )
        take(f"Nats a token, {receiver}", [f"{at}/nll", f"{at}/deranged_nll"])
        take(
            f"How alike slots are, {receiver}",
            [f"{at}/slots/within_cosine", f"{at}/slots/between_cosine"],
        )
    take("Learning rate", [k for k in held if k.startswith("train/learning_rate")])
    take("Norm of the gradient", ["train/grad_norm"])
    counters = {"train/bad_steps", "train/seconds_per_step", "evaluate/seconds"}
    rest = [k for k in held if k not in used | counters and not k.startswith("evaluate/alarm/")]
    more = [Chart(k.partition("/")[2], [Series(k.partition("/")[2], held[k])]) for k in rest]
    return {
        "stage": stage,
        "charts": main,
        "more": more[:MOST_MORE],
        "left_out": max(0, len(more) - MOST_MORE),
        "alarms": list(fired.values()),
    }


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """Names of lines in one chart: what tells them apart."""
    parts = {k: k.split("/") for k in keys}
    same = 0
    while len(keys) > 1 and len({tuple(p[: same + 1]) for p in parts.values()}) == 1:
        same += 1
    return {
        k: "/".join(p[same:] if len(keys) > 1 else p[1:]).replace("_", " ")
        for k, p in parts.items()
    }


def _ratios(run: Read) -> list[Chart]:
    """Quality against ratio, where evaluations have several."""
    found = []
    names = {n for e in run.evaluations for n in e.metrics["receivers"]}
    for receiver in sorted(names):
        lines: dict[str, list[tuple[float, float, tuple[float, float]]]] = {}
        for one in run.evaluations:
            at = (one.metrics.get("compression") or {}).get("receivers", {}).get(receiver)
            if at is None or not at["columns"]:
                continue
            for method, figures in one.metrics["receivers"].get(receiver, {}).items():
                if method in ("text", "latent", "deranged") or method.startswith(BUDGET):
                    point = at["tokens_per_column"], figures["em"], tuple(figures["ci"]["em"])
                    lines.setdefault(method, []).append(point)
        ratios = [ratio for ratio, _, _ in lines.get("latent", [])]
        if ratios and max(ratios) > APART * min(ratios):
            series = []
            for method, points in lines.items():
                points.sort(key=lambda p: p[0])
                xy = [(x, y) for x, y, _ in points]
                series.append(Series(method, xy, [ci for _, _, ci in points], dots=True))
            title = f"Exact match of {receiver} against the receiver's tokens a column"
            x = "the receiver's tokens of the text in a column (logarithmic)"
            found.append(Chart(title, series, x=x, low=0.0, high=1.0, logarithmic=True))
    return found


# Slots and rows


def _maps(run: Read) -> dict[str, Any]:
    known = {row["id"]: row for row in run.rows}
    texts = [{**one, "about": known.get(one["row"], {}).get("question", "")} for one in run.maps]
    return {"texts": texts, "reads": any(one.get("reads") for one in texts)}


def _row(run: Read, row: Mapping[str, Any], receiver: str) -> dict[str, Any]:
    said, golds = row["receivers"][receiver], list(row["answers"])
    budget = best_budget(run.metrics["receivers"].get(receiver, {}))
    first = [m for m in (budget if n == BUDGET else n for n in SHOWN) if m in said]
    rest = [m for m in said if m not in first]

    def answer(method: str) -> dict[str, Any]:
        one = said[method]
        return {
            "method": method,
            "right": one["em"] >= 1,
            "pieces": marked(one["text"], golds),
            "empty": not one["text"].strip(),
            "choice": one.get("choice"),
        }

    text = row["context"]
    return {
        "id": row.get("row_id") or row["id"],
        "receiver": receiver,
        "text": text[:MOST_TEXT],
        "cut": max(0, len(text) - MOST_TEXT),
        "question": row["question"],
        "golds": golds,
        "answers": [answer(m) for m in first],
        "rest": [answer(m) for m in rest],
        "marks": {m: said[m]["em"] >= 1 for m in said},
    }
