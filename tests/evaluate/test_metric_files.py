"""A metric is one file: the figures, the table, the history and the records have it from there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from lw_jax.data import facts, gsm8k, jsonl
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import metrics as registry
from lw_jax.evaluate import report, summary
from lw_jax.evaluate.metrics import columns, metrics
from lw_jax.evaluate.metrics.base import Metric, Prediction, Rows
from lw_jax.evaluate.summary import Settings
from lw_jax.results.columns import column
from lw_jax.results.record import evaluation
from lw_jax.utils.registry import add_file

RIGHT = """
from lw_jax.evaluate.metrics.base import Metric


def per_row(rows):
    return rows.each(lambda example, said: float("!" in said.text))


METRIC = Metric("loud", 15, per_row, title="shouted", column=15, interval=True, history=True)
"""
SETTINGS = Settings(seed=0, resamples=20)
EXAMPLES = [Example(f"{i}", f"c{i}", "Ann has 3 pens.", "How many?", ("3",)) for i in range(4)]
SAID = [Prediction(t, 1.0, 2, 0, True, True, 4, 10) for t in ("3", "3!", "4!", "5!")]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test adds is forgotten."""
    before = dict(registry._known())
    yield
    registry._known().clear()
    registry._known().update(before)


def test_the_lists_are_what_the_metrics_say() -> None:
    """As they were when they were kept by hand."""
    assert [metric.name for metric in columns()] == (
        "em f1 choice entities nouns source_entities final partial nll first_top1 first_top5 "
        "distinct"
    ).split()
    assert (
        list(metrics())
        == (
            "em f1 nll nll_words first_top1 first_top5 loops choice numbers names entities nouns "
            "source_numbers source_names source_entities source_nouns final partial failed distinct"
        ).split()
    )
    shown = {name for name, metric in metrics().items() if metric.interval}
    assert shown == {"em", "f1", "choice", "entities", "final"}
    assert [n for n, metric in metrics().items() if metric.history] == ["em", "f1", "nll"]
    assert {n for n, metric in metrics().items() if metric.recorded} == set(
        "em f1 nll choice final partial entities source_entities distinct loops".split()
    )
    assert {n for n, metric in metrics().items() if metric.always} == set(
        "em f1 nll first_top1 first_top5 loops distinct".split()
    )
    assert [n for n, m in metrics().items() if not m.share] == ["nll", "nll_words"]


def test_a_file_outside_the_package_is_a_metric(tmp_path: Path) -> None:
    (tmp_path / "loudness.py").write_text(RIGHT)
    add_file(tmp_path / "loudness.py")
    found = summary.of_method(EXAMPLES, SAID, 1.0, SETTINGS)
    assert found["loud"] == 0.75
    assert list(found)[:2] == ["em", "loud"]
    low, high = found["ci"]["loud"]
    assert low < 0.75 < high
    screen = io.StringIO()
    Console(file=screen, width=200).print(report.table("r", {"latent": found}))
    assert "0.750 [" in screen.getvalue()
    held = {
        "receivers": {"r": {"latent": found}},
        "joint": {},
        "verdict": {"r": {"carries": True, "share": 1.0}},
        "compression": {},
        "parameters": {},
        "data": {"rows": 4},
        "versions": {},
    }
    kept = evaluation(held)["receivers"]["r"]["latent"]
    assert (kept["loud"], kept["ci"]["loud"]) == (0.75, found["ci"]["loud"])
    line = report.history("run", held | {"stage": "s"})
    assert line["receivers"]["r"]["latent"] == {"em": 0.5, "loud": 0.75, "f1": 0.5, "nll": 0.5}
    shown = column("latent.loud")
    assert shown is not None and shown.heading == "latent shouted"
    assert column("latent.quiet") is None


GOOD = Metric("new", 1, lambda rows: rows.each(lambda e, p: 1.0))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (replace(GOOD, name="em"), r"f\.py: there is a metric 'em' already; name it otherwise"),
        ("a text", r"f\.py: expected METRIC = Metric\(\.\.\.\) or METRICS"),
        (Metric("new", 1), r"f\.py: metric 'new' needs per_row\(rows\) or whole\(rows\)"),
        (replace(GOOD, per_row=lambda a, b: a), r"f\.py: per_row\(a, b\) has other parameters"),
        (replace(GOOD, applies=3), r"f\.py: applies has to be a function, applies\(rows\)"),
    ],
)
def test_what_breaks_the_contract_is_said_in_a_line(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.register("f", entry, "f.py")


def test_a_missing_field_is_said_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "unordered.py").write_text(RIGHT.replace('"loud", 15, per_row', '"loud"'))
    with pytest.raises(UserError, match=r"unordered\.py: .* argument: 'order'"):
        add_file(tmp_path / "unordered.py")


def test_a_wrong_value_is_said_when_it_comes() -> None:
    registry.register("f", replace(GOOD, per_row=lambda rows: 0.5), "f.py")
    with pytest.raises(UserError, match="metric 'new': per_row has to give two sequences of 4"):
        summary.per_row(Rows(EXAMPLES, SAID))


def test_the_data_set_says_whether_answers_end_in_a_number() -> None:
    ends = {task: gsm8k.Config(task=task).ends_in_number for task in ("readback", "solve", "final")}
    assert ends == {"readback": False, "solve": True, "final": False}
    assert not facts.Config().ends_in_number
    assert not jsonl.Config(train="x.jsonl").ends_in_number
    assert jsonl.Config(train="x.jsonl", ends_in_number=True).ends_in_number
    marked = [replace(e, answers=("3 #### 3",)) for e in EXAMPLES]
    assert "final" not in summary.per_row(Rows(marked, SAID))
    assert summary.per_row(Rows(marked, SAID, ends_in_number=True))["final"][0].sum() == 2


def test_metrics_of_installed_packages_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric, or a module that defines one or several."""
    module = ModuleType("theirs")
    vars(module)["METRICS"] = (Metric("far", 151, _shouts), Metric("near", 152, _shouts))
    entries = [("loud", Metric("loud", 150, _shouts), "a package"), ("theirs", module, "another")]
    monkeypatch.setattr(registry, "added_entry_points", lambda name: entries)
    found = registry._known.__wrapped__()
    assert set(found) - set(registry._known()) == {"loud", "far", "near"}


def _shouts(rows: Rows) -> Any:
    return rows.each(lambda example, said: float("!" in said.text))
