"""Figures from predictions made by hand, and which rows are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.evaluate import bootstrap, compare, examples, report, summary
from lw_jax.evaluate import examples as rows
from lw_jax.evaluate.config import EvaluateConfig, NormalisedConfig
from lw_jax.evaluate.figures import Asked, figures
from lw_jax.evaluate.methods import method
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.summary import Settings
from lw_jax.utils import files

SETTINGS = Settings(seed=0, resamples=100)


def _example(i: int, answer: str, context: str = "c") -> Example:
    return Example(f"q{i}", f"c{i}", context, "Who?", (answer,))


def _said(text: str, **more: object) -> Prediction:
    base = Prediction(text, 2.0, 2, 0, False, False, 10, 100)
    return replace(base, **more)


def test_figures_of_a_method_by_hand() -> None:
    examples = [_example(0, "red cat"), _example(1, "dog"), _example(2, "dog")]
    said = [
        _said("a cat", nll=6.0, tokens=3, first_rank=4),
        _said("dog", nll=1.0, tokens=1, argmax=True, same=True),
        _said("dog", nll=2.0, tokens=2, first_rank=7, same=None),
    ]
    found = summary.of_method(examples, said, 1.5, SETTINGS)
    assert found["em"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 2) / 3)
    assert found["nll"] == pytest.approx(9 / 6)  # per gold token, not per row
    assert found["first_top1"] == pytest.approx(1 / 3)
    assert found["first_top5"] == pytest.approx(2 / 3)
    assert found["distinct"] == pytest.approx(2 / 3)
    assert (found["n"], found["seconds"], found["columns"]) == (3, 1.5, 10)
    assert (found["compared"], found["disagreements"]) == (2, 0)
    assert "final" not in found


def test_a_disagreement_is_an_alarm() -> None:
    examples = [_example(0, "a"), _example(1, "b")]
    said = [_said("a", argmax=True, same=False), _said("b", argmax=True, same=True)]
    methods = {"text": summary.of_method(examples, said, 1.0, SETTINGS)}
    assert methods["text"]["disagreements"] == 1
    (line,) = report.alarms("reader", methods)
    assert line.startswith("ALARM reader, text: in 1 of 2 rows")
    said[0] = replace(said[0], same=True)
    assert not report.alarms("reader", {"text": summary.of_method(examples, said, 1.0, SETTINGS)})


def test_identical_outputs_are_no_entity_transfer() -> None:
    """Fault 19: the same words for every text; the floor of other texts stands beside it."""
    texts = ["He met Ann and Bob at 7.", "He met Cid and Dan at 8.", "He met Ann and Eve at 9."]
    examples = [_example(i, t) for i, t in enumerate(texts)]
    said = [_said(texts[0]) for _ in texts]
    found = summary.of_method(examples, said, 1.0, SETTINGS)
    assert found["entities"] == pytest.approx((3 + 0 + 1) / 9)
    assert found["distinct"] == pytest.approx(1 / 3)
    found = summary.floors(examples, [examples[1], examples[2], examples[0]], ends_in_number=False)
    assert found["entities"]["entities"] == pytest.approx(1 / 9)
    assert found["entities"]["numbers"] == 0
    assert "answers" not in found


def test_short_answers_have_no_entity_transfer() -> None:
    """Names and numbers are counted where a gold text has two on average, and not below."""
    said = [_said("Ann"), _said("Bob")]
    for texts, scored in ((("Ann and Bob", "Cid, 7"), True), (("Ann and Bob", "Cid"), False)):
        examples = [_example(i, f"it was {text}") for i, text in enumerate(texts)]
        found = summary.of_method(examples, said, 1.0, SETTINGS)
        assert ("entities" in found) == scored
    assert found["em"] == 0


def _problem(i: int, answer: str, context: str) -> Example:
    return Example(f"q{i}", f"c{i}", context, "", (answer,))


def test_gsm8k_is_right_partial_or_failed() -> None:
    examples = [_problem(i, "3 + 4 = 7 #### 7", "Ann has 3 pens and 4 hats.") for i in range(4)]
    rows = [_said(t) for t in ("4 #### 7", "so #### 8", "of 3, #### 8", "")]
    found = figures(
        Asked(examples, [], 0, 50, ends_in_number=True), {"reader": {"text": (rows, 1.0)}}
    )
    found = found["receivers"]["reader"]["text"]
    assert (found["final"], found["partial"], found["failed"]) == (0.25, 0.25, 0.5)
    other = _problem(9, "2 + 3 = 5 #### 5", "Bob has 2 and 3.")
    floor = summary.floors(examples[:1], [other], ends_in_number=True)
    assert floor["answers"] == {"final": 0, "partial": 1, "failed": 0}
    assert floor["entities"]["source_numbers"] == 0.5  # the 3
    assert floor["entities"]["numbers"] == pytest.approx(1 / 3)


def test_entities_of_the_problem_and_of_its_solution_are_told_apart() -> None:
    examples = [_problem(0, "3 + 4 = 7 #### 7", "Ann has 3 pens and 4 hats, and Ann met Bob.")]
    found = summary.of_method(examples, [_said("Ann has 3 pens")], 1.0, SETTINGS)
    assert found["numbers"] == pytest.approx(1 / 3)
    assert found["source_numbers"] == 0.5
    assert found["source_names"] == 0.5
    assert found["source_entities"] == 0.5
    assert found["source_nouns"] == 0.5
    readback = [replace(examples[0], answers=(examples[0].context,))]
    assert "source_numbers" not in summary.of_method(readback, [_said("")], 1.0, SETTINGS)


def test_the_oracle_takes_the_better_receiver() -> None:
    examples = [_example(i, "dog") for i in range(4)]
    right, wrong = _said("dog"), _said("cat")
    controls = {"no_message": ([wrong] * 4, 1.0), "deranged": ([wrong] * 4, 1.0)}
    said = {
        "a": {"latent": ([right, right, wrong, wrong], 1.0), **controls},
        "b": {"latent": ([right, wrong, right, wrong], 1.0), **controls},
    }
    found = figures(Asked(examples, [], 0, 50), said)
    assert set(found["joint"]) == {"oracle"}
    assert found["joint"]["oracle"]["em"] == 0.75
    chosen = figures(Asked(examples, [], 0, 50), said, ["dog", "cat", "cat", "cat"])["joint"]
    assert (chosen["rescored"]["em"], chosen["oracle"]["em"]) == (0.25, 0.75)
    assert "chosen by all of them: EM 0.250 [" in report.together(chosen)
    assert set(found["verdict"]) == {"a", "b"}
    assert figures(Asked(examples, [], 0, 50), {"a": said["a"]})["joint"] == {}


def test_nan_never_reaches_a_file(tmp_path) -> None:
    files.write_json(tmp_path / "x" / "m.json", {"a": [float("nan"), 1.0], "b": float("inf")})
    assert "NaN" not in (tmp_path / "x" / "m.json").read_text()


class _Rows:
    malformed: Sequence[str] = ()

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int, /) -> tuple[Example, ...]:
        return tuple(Example(f"{i}/{k}", str(i), "c", "q", ("a",)) for k in range(self.sizes[i]))


def test_every_context_is_asked_before_any_is_asked_twice() -> None:
    source = _Rows([3, 1, 2, 5])
    four = examples.choose(source, 4, seed=0)
    assert sorted(e.context_id for e in four) == ["0", "1", "2", "3"]
    everything = examples.choose(source, 0, seed=0)
    assert len({e.id for e in everything}) == 11
    assert everything[:4] == four
    assert examples.choose(source, 4, seed=1) != four
    assert len(examples.choose(source, 100, seed=0)) == 11
    with pytest.raises(UserError, match="no rows to evaluate"):
        examples.choose(_Rows([]), 4, seed=0)


def test_rows_without_end_are_drawn_from() -> None:
    endless = FactsRows("eval", 0, 1, 100_000_000)
    found = examples.choose(endless, 5, seed=3)
    assert len({e.context_id for e in found}) == 5
    assert [e.id for e in found] == [e.id for e in examples.choose(endless, 5, seed=3)]


def test_deranged_rows_have_another_context() -> None:
    examples = rows.choose(_Rows([3, 3, 2]), 0, seed=0)
    other = [examples[i] for i in rows.others(examples)]
    assert all(a.context_id != b.context_id for a, b in zip(examples, other, strict=True))
    assert rows.digest(examples) == rows.digest(list(examples))
    assert rows.digest(examples) != rows.digest(other)
    assert np.mean([len(e.id) for e in other]) > 0


def test_the_nearest_other_context_is_of_the_same_article() -> None:
    """Two articles of three and two contexts, one with a single context, and a row of none."""
    articles = ["a", "a", "a", "b", "b", "c", ""]
    asked = [
        replace(_example(i, "dog"), id=f"q{i}/{turn}", article=article)
        for turn in range(2)
        for i, article in enumerate(articles)
    ]
    near = rows.near(asked)
    for row, other in zip(asked, near, strict=True):
        if row.article in ("a", "b"):
            assert other is not None
            assert asked[other].article == row.article
            assert asked[other].context_id != row.context_id
        else:
            assert other is None


def test_a_row_is_given_the_packet_of_the_nearest_other_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row without one is given its own, and does not count; the last place is filling."""
    monkeypatch.setattr(compare, "put_batch", lambda mesh, rows: rows)
    packets = SimpleNamespace(received=lambda codec, rows: rows)
    asked: Any = SimpleNamespace(
        packets=packets,
        examples=range(3),
        size=4,
        near=[2, None, 0],
        others=[1, 2, 0],
        pipeline=SimpleNamespace(mesh=None),
    )
    rows = {
        name: compare.Comparison.received(asked, method(name), 0)
        for name in ("latent", "deranged", "deranged_near")
    }
    assert rows == {
        "latent": [0, 1, 2, 0],
        "deranged": [1, 2, 0, 1],
        "deranged_near": [2, 1, 0, 2],
    }


def test_rows_that_a_method_does_not_count_are_in_none_of_its_figures() -> None:
    asked = [_example(i, "dog") for i in range(4)]
    right, wrong = _said("dog"), _said("cat")
    said = {name: ([wrong] * 4, 1.0) for name in ("no_message", "deranged")}
    said |= {"latent": ([right] * 4, 1.0), "deranged_near": ([right, wrong, wrong, right], 1.0)}
    found = figures(Asked(asked, [], 0, 50, counted={"deranged_near": [1, 2, 3]}), {"a": said})
    near = found["receivers"]["a"]["deranged_near"]
    assert (near["em"], near["n"], near["left_out"]) == (pytest.approx(1 / 3), 3, 1)
    verdict = found["verdict"]["a"]
    assert verdict["differences"]["deranged_near"]["mean"] == pytest.approx(2 / 3)
    assert "of the same article (deranged_near, 3 rows)" in verdict["words"][-1]
    (note,) = report.notes("a", {"deranged_near": near})
    assert "deranged_near: 1 of 4 rows do not count" in note
    lines = report.predictions(asked, {"a": said}, counted={"deranged_near": [1, 2, 3]})
    assert ["deranged_near" in line["receivers"]["a"] for line in lines] == [False] + [True] * 3


ENDS = NormalisedConfig(text=("plain", "tuned"), nothing="no_message")


def _tuned(rows: int, latent: int, tuned: int) -> dict[str, tuple[list[Prediction], float]]:
    """A text that is right in `tuned` rows of which the latent is right in `latent`."""

    def rights(count: int, nll: float) -> tuple[list[Prediction], float]:
        said = [_said("dog" if i % rows < count else "cat", nll=nll) for i in range(rows)]
        return said, 1.0

    return {
        "latent": rights(latent, 2.0),
        "plain": rights(tuned // 2, 0.5),
        "tuned": rights(tuned, 1.0),
        "no_message": rights(0, 5.0),
        "deranged": rights(0, 6.0),
    }


def test_the_normalised_score_is_between_the_best_text_and_nothing() -> None:
    asked = [replace(_example(i, "dog"), article=f"a{i % 8}") for i in range(40)]
    found = figures(Asked(asked, [], 0, 50), {"a": _tuned(40, 20, 30)}, ends=ENDS)["normalised"][
        "a"
    ]
    assert (found["text"], found["nothing"], found["why"]) == ("tuned", "no_message", None)
    assert (found["groups"], found["count"]) == ("article", 8)
    shares = {name: (s["f1"]["share"], s["nll"]["share"]) for name, s in found["lines"].items()}
    assert shares["tuned"] == (1, 1)
    assert shares["no_message"] == (0, 0)
    assert shares["latent"] == pytest.approx((20 / 30, 3 / 4))
    assert found["lines"]["latent"]["f1"]["of_text"] == pytest.approx(20 / 30)
    low, high = found["lines"]["latent"]["f1"]["ci"]
    assert low < 20 / 30 < high
    first, last = found["words"]
    assert first.startswith("latent carries 0.67 [0.")
    ends = "(latent 0.500, text 0.750, nothing 0.000; EM 0.500, 0.750, 0.000)"
    assert f"of what the text (tuned) is worth in F1 {ends}" in first
    # the nats are the same in all rows, of which draws would make a certainty
    assert ", 0.75 in nats; latent / text 0.67 in F1" in first
    assert "intervals over 8 articles" in last
    bare = [replace(e, article="") for e in asked]
    found = figures(Asked(bare, [], 0, 50), {"a": _tuned(40, 20, 30)}, ends=ENDS)["normalised"]["a"]
    assert (found["groups"], found["count"]) == ("context", 40)


def test_there_is_no_share_of_a_text_that_is_worth_little() -> None:
    asked = [_example(i, "dog") for i in range(40)]
    found = figures(Asked(asked, [], 0, 50), {"a": _tuned(40, 3, 7)}, ends=ENDS)["normalised"]["a"]
    assert found["lines"] == {}
    (line,) = found["words"]
    assert "text - nothing is 0.175 F1 (tuned 0.175, no_message 0.000), below 0.2" in line


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"text": ("tuned",), "nothing": "no_message"}, "'tuned' is no line of all rows"),
        ({"text": ("text",), "nothing": "text"}, "nothing: 'text' is a line of text as well"),
        ({"text": (), "nothing": "no_message"}, "text: "),
        ({"text": ("deranged_near",), "nothing": "zero"}, "'deranged_near' is no line of all rows"),
    ],
)
def test_the_ends_are_lines_of_the_evaluation(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig(
            methods=("latent", "text", "deranged_near"), normalised=NormalisedConfig(**raw)
        )


def _asked_twice(
    questions: int,
) -> tuple[list[Example], dict[str, tuple[list[Prediction], float]]]:
    """Thirty contexts with so many questions each, all of a context answered alike."""
    rows, said = [], {"latent": [], "no_message": [], "deranged": []}
    for context in range(30):
        for question in range(questions):
            rows.append(replace(_example(context, "dog"), id=f"q{context}/{question}"))
            said["latent"].append(_said("cat" if context % 3 == 0 else "dog"))
            said["no_message"].append(_said("dog" if context % 7 == 0 else "cat"))
            said["deranged"].append(_said("dog" if context % 5 == 0 else "cat"))
    return rows, {name: (predictions, 1.0) for name, predictions in said.items()}


def test_questions_of_one_context_are_no_more_contexts() -> None:
    """Every interval is of contexts resampled whole: four questions answered alike add nothing."""
    right = np.array([context % 3 != 0 for context in range(30)], float)
    expected = bootstrap.interval(right, seed=0, resamples=200, bounds=(0, 1))
    found = {}
    for questions in (1, 4):
        rows, methods = _asked_twice(questions)
        made = figures(Asked(rows, [], 0, 200), {"a": methods, "b": methods}, ["dog"] * len(rows))
        assert made["receivers"]["a"]["latent"]["ci"]["em"] == pytest.approx(list(expected))
        assert made["joint"]["oracle"]["ci"]["em"] == pytest.approx(list(expected))
        found[questions] = made
    assert found[4]["verdict"]["a"] == found[1]["verdict"]["a"]
    for which in ("oracle", "rescored"):
        assert found[4]["joint"][which]["ci"] == found[1]["joint"][which]["ci"]


def test_a_verdict_by_choice_where_every_method_has_chosen() -> None:
    examples = [_example(i, "dog") for i in range(4)]
    chosen, plain = _said("dog", nats={"dog": -1.0, "cat": -2.0}), _said("dog")
    said = {name: ([chosen] * 4, 1.0) for name in ("latent", "no_message", "deranged")}
    asked = Asked(examples, [], 0, 50)
    assert figures(asked, {"a": said})["verdict"]["a"]["choice"]["metric"] == "choice"
    said["deranged"] = ([plain] * 4, 1.0)
    assert "choice" not in figures(asked, {"a": said})["verdict"]["a"]
