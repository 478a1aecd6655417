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
    several = [replace(e, answers=("#### 1000001", *e.answers)) for e in marked]
    assert summary.per_row(Rows(several, SAID, ends_in_number=True))["final"][0].sum() == 2


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


def test_the_places_of_the_metrics() -> None:
    """A metric from elsewhere stands between those that it names."""
    orders = {name: metric.order for name, metric in metrics().items()}
    told = "em f1 nll nll_words first_top1 first_top5 loops choice".split()
    assert [orders[name] for name in told] == [10, 20, 30, 31, 40, 50, 60, 70]
    kinds = "numbers names entities nouns".split()
    assert [orders[name] for name in kinds] == [80, 81, 82, 83]
    assert [orders[f"source_{name}"] for name in kinds] == [90, 91, 92, 93]
    assert [orders[name] for name in ("final", "partial", "failed", "distinct")] == [
        100,
        101,
        102,
        110,
    ]


def test_where_a_figure_of_a_row_begins() -> None:
    """Ranks count from 0; a row of EOS alone has no words; what is longest is chosen by nats."""
    ranks = [0, 1, 4, 5]
    said = [replace(SAID[0], first_rank=rank, tokens=1 + (rank > 3)) for rank in ranks]
    rows = summary.per_row(Rows(EXAMPLES, said))
    assert rows["first_top1"][0].tolist() == [1, 0, 0, 0]
    assert rows["first_top5"][0].tolist() == [1, 1, 1, 0]
    assert rows["nll_words"][1].tolist() == [0, 0, 1, 1]
    assert "nll_words" not in summary.per_row(Rows(EXAMPLES, said[:2] * 2))
    words = [replace(one, nll=3.0, end_nll=0.5, tokens=3) for one in SAID]
    total, count = summary.per_row(Rows(EXAMPLES, words))["nll_words"]
    assert (total.tolist(), count.tolist()) == ([2.5] * 4, [2] * 4)
    some = [
        replace(SAID[0], nats={"3": -1.0, "4": -2.0}),
        replace(SAID[1], nats={"3": -2, "4": -1}),
    ]
    chosen = summary.per_row(Rows(EXAMPLES[:2], some))["choice"]
    assert (chosen[0].tolist(), chosen[1].tolist()) == ([1, 0], [1, 1])
    assert "choice" not in summary.per_row(Rows(EXAMPLES[:2], [some[0], SAID[0]]))


def test_a_method_by_hand() -> None:
    """Means over rows and over parts; what is compared, how outputs ended, which are empty."""
    said = [
        Prediction("3", 2.0, 1, 0, True, True, 4, 10, ended="eos"),
        Prediction(" ", 4.0, 2, 7, True, False, 8, 30, ended="limit"),
        Prediction("4", 9.0, 2, 0, False, None, 0, 20, ended="limit"),
        Prediction("3", 5.0, 3, 0, False, False, 4, 20, ended="stop"),
    ]
    found = summary.of_method(EXAMPLES, said, 2.5, SETTINGS)
    assert (found["nll"], found["em"], found["n"], found["seconds"]) == (20 / 8, 0.5, 4, 2.5)
    assert (found["columns"], found["wire_bytes"]) == (4.0, 20.0)
    assert (found["compared"], found["disagreements"]) == (3, 1)
    assert found["ended"] == {"eos": 0.25, "stop": 0.25, "limit": 0.5}
    assert (found["empty"], found["distinct"]) == (0.25, 0.75)
    same = [Prediction("3", 6.0, 2, 0, True, True, 4, 10)] * 4
    bounded = summary.of_method(EXAMPLES, same, 1.0, SETTINGS)["ci"]
    assert bounded["em"][0] < bounded["em"][1] == 1.0  # a share is not certain
    assert bounded["nll"] == [3.0, 3.0]


def test_what_other_answers_have_by_chance() -> None:
    texts = ["Then Ann has 3 pens and 4 cups.", "Then Bob has 3 cats and 5 dogs."]
    rows = [Example(f"{i}", f"c{i}", t, "", (t,)) for i, t in enumerate(texts)]
    found = summary.floors(rows, rows[::-1], False)
    assert found["entities"]["numbers"] == 0.5
    assert found["entities"]["names"] == 0.0
    assert "answers" not in found
    marked = [replace(e, answers=(f"{n} #### {n}",)) for e, n in zip(EXAMPLES, "3456", strict=True)]
    assert summary.floors(marked, marked[:1] * 4, True)["answers"]["final"] == 0.25


def test_how_many_entities_make_a_text_long() -> None:
    """Two a text, on average; of a problem and its solution the problem's are counted too."""
    two = [Example("0", "c", "Then Ann has 3 pens.", "", ("Then Ann has 3 pens.",))] * 2
    said = [SAID[0]] * 2
    assert "entities" in summary.per_row(Rows(two, said))
    one = [replace(two[0], answers=("It has 3 of them.",))]
    assert "entities" not in summary.per_row(Rows([*two, *one], [*said, said[0]]))
    problem = replace(two[0], answers=("Then Ann has 3 pens #### 3",))
    held = summary.per_row(Rows([problem], said[:1]))
    assert held["source_entities"][0].tolist() == [1] and held["source_entities"][1].tolist() == [2]
    assert "source_entities" not in summary.per_row(
        Rows([replace(problem, question="Why?")], said[:1])
    )
    assert "source_entities" not in summary.per_row(Rows(two, said))


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_metrics_of_a_file(kind: Any) -> None:
    registry.register("f", kind([replace(GOOD, name="one"), replace(GOOD, name="two")]), "f.py")
    assert {"one", "two"} <= set(metrics())


def test_texts_of_which_some_are_no_problems() -> None:
    problem = Example("0", "c", "Then Ann has 3 pens.", "", ("Then Ann has 3 pens #### 3",))
    asked = replace(problem, question="Why?")
    assert "source_entities" in summary.per_row(Rows([problem] * 2, SAID[:2]))
    assert "source_entities" not in summary.per_row(Rows([problem, asked], SAID[:2]))
