"""Which answers there are to choose from, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lw_jax.config.parse import build
from lw_jax.data.config import DataConfig
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import summary
from lw_jax.evaluate.candidates import answering, candidates_of
from lw_jax.evaluate.config import EvaluateConfig
from lw_jax.evaluate.figures import Asked, figures
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.summary import Settings
from lw_jax.text.layout_config import LayoutConfig

LAYOUT = LayoutConfig()
LABELS = ["negative", " positive "]


def data(**kind: Any) -> Any:
    return build(DataConfig, kind)


def row(i: int, *answers: str, question: str = "Which?") -> Example:
    return Example(f"q{i}", f"c{i}", "text", question, answers)


def test_the_labels_of_data_that_has_a_few() -> None:
    def found(data: Any, *answers: str, cfg: EvaluateConfig | None = None) -> tuple[str, ...]:
        return candidates_of(cfg or EvaluateConfig(), data, LAYOUT, [row(0, *answers)], [])

    topics, facts = data(topics={}), data(facts={})
    film = data(classification={"train": "film.jsonl", "labels": LABELS})
    assert found(topics, "jobs") == ("animals", "jobs", "things", "places")
    assert found(film, "positive") == ("negative", "positive")
    assert found(facts, "Ann") == ()  # open answers
    assert found(topics, "jobs", cfg=EvaluateConfig(candidates=())) == ()
    asked = EvaluateConfig(candidates=("yes ", "no"))
    assert found(facts, "no", cfg=asked) == ("yes", "no")
    assert found(facts, "nope", "no", cfg=asked) == ("yes", "no")  # any of a row's answers


def test_every_question_is_measured_with_every_candidate() -> None:
    rows = [row(0, "no"), row(1, "yes"), row(2, "no", question="How?")]
    found = [(e.question, e.answers[0], e.context) for e in answering(rows, ("yes", "no"))]
    assert found == [(q, a, "") for q in ("Which?", "How?") for a in ("yes", "no")]


@pytest.mark.parametrize("given", [("yes",), ("yes", "yes "), ("yes", " ")])
def test_no_choice_is_an_error(given: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^candidates: expected two or more different answers"):
        EvaluateConfig(candidates=given)


def test_a_row_with_another_answer_is_an_error() -> None:
    cfg = EvaluateConfig(candidates=("yes", "no"))
    with pytest.raises(UserError, match=r"^candidates: yes, no; .* row q1 is .*'perhaps"):
        candidates_of(cfg, data(facts={}), LAYOUT, [row(0, "no"), row(1, "perhaps")], [])


def test_there_is_no_choice_where_more_than_an_answer_is_written() -> None:
    layout = LayoutConfig(target="question_answer", question_in="latent")
    assert candidates_of(EvaluateConfig(), data(topics={}), layout, [row(0, "jobs")], []) == ()
    cfg = EvaluateConfig(candidates=("yes", "no"))
    with pytest.raises(UserError, match=r"^candidates: layout\.target question_answer"):
        candidates_of(cfg, data(topics={}), layout, [row(0, "yes")], [])


def test_the_choice_is_the_most_probable_whole_answer_whatever_is_written() -> None:
    def said(text: str, yes: float, no: float) -> Prediction:
        return Prediction(text, 1.0, 1, 0, False, None, 1, 1, {"certainly": yes, "no": no})

    rows = [row(0, "certainly"), row(1, "certainly"), row(2, "no"), row(3, "no")]
    outputs = [said("", -3, -4), said("", -4, -3), said("no", -3, -2), said("?", -1, -1)]
    # -3 nats for nine bytes against -2 for two: a byte is not what is counted
    assert [p.choice for p in outputs] == ["certainly", "no", "no", "certainly"]
    found = summary.of_method(rows, outputs, 1.0, Settings(seed=0, resamples=50))
    assert (found["em"], found["choice"]) == (0.25, 0.5)
    assert 0 <= found["ci"]["choice"][0] < 0.5 < found["ci"]["choice"][1] <= 1
    bare = [Prediction(p.text, 1.0, 1, 0, False, None, 1, 1) for p in outputs]
    assert bare[0].choice is None
    assert "choice" not in summary.of_method(rows, bare, 1.0, Settings(seed=0, resamples=50))


def test_a_form_that_was_learned_is_no_content_by_the_choice() -> None:
    """`deranged` writes labels, half right; `no_message` none, and chooses as well."""
    rows = [row(i, ("yes", "no")[i % 2]) for i in range(200)]

    def said(text: str, chosen: str) -> Prediction:
        nats = {word: -1.0 - (word != chosen) for word in ("yes", "no")}
        return Prediction(text, 1.0, 1, 0, False, None, 4, 1, nats)

    gold = [e.answers[0] for e in rows]
    half = [gold[i] if i % 4 < 2 else gold[i + 1 if i % 2 == 0 else i - 1] for i in range(200)]
    outputs = {
        "latent": [said(g, g) for g in gold],
        "no_message": [said("?", h) for h in half],
        "deranged": [said(h, h) for h in half],
    }
    methods = {name: (given, 1.0) for name, given in outputs.items()}
    found = figures(Asked(rows, [], 0, 200), {"reader": methods})["verdict"]["reader"]
    assert (found["metric"], found["carries"]) == ("f1", False)
    assert found["share"] == pytest.approx(0.5)
    by_choice = found["choice"]
    assert (by_choice["metric"], by_choice["carries"]) == ("choice", True)
    assert by_choice["share"] == pytest.approx(1.0)
    assert " choice, 100% of latent - no_message +0.500 " in by_choice["words"][0]
