"""A stage ends once its figure has stopped rising, at the same step however often it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.train.checkpoint import steps
from lw_jax.train.config import StopWhen, TrainConfig
from lw_jax.train.loop import Evaluation, checkpoint_root, end_of, fit
from lw_jax.train.state import TrainState
from tests.tiny.training import fresh, job, make_step

RULE = StopWhen(rise=0.01, share=0.25)
CURVE = {3: 0.1, 6: 0.4, 9: 0.5, 12: 0.6, 15: 0.605, 18: 0.607, 21: 0.9, 24: 0.9, 27: 0.9, 30: 0.9}
END = 18
"""At 15 the best up to step 11 is 0.5; at 18 that up to 13 is 0.6, and 0.607 is not enough."""


@pytest.fixture(scope="module")
def compiled() -> Any:
    return make_step(fresh()[1])


def run(directory: Path, compiled: Any, **changes: Any) -> TrainState:
    def evaluate(state: TrainState, step: int) -> Evaluation:
        return Evaluation({"a/f1": CURVE[step] - 0.1, "b/f1": CURVE[step] + 0.1, "a/nll": 9.0})

    given = {"step_for": lambda _: compiled, "eval_every": 3, "evaluate": evaluate}
    return fit(job(directory, **given | {"stop_when": RULE} | changes))


def lines(directory: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (directory / "diagnostics.jsonl").read_text().splitlines())
    return [{k: v for k, v in one.items() if not k.startswith("seconds")} for one in found]


def test_it_ends_where_the_figure_stops_rising(compiled: Any, tmp_path: Path) -> None:
    state = run(tmp_path, compiled)
    assert int(state.step) == END
    (told,) = [line for line in lines(tmp_path) if line["kind"] == "stop"]
    assert told["step"] == END and told["since"] == 13
    assert (told["metric"], told["rise"], told["share"]) == ("f1", 0.01, 0.25)
    assert (told["best"], told["best_before"]) == pytest.approx((0.607, 0.6))
    root = checkpoint_root(tmp_path, "first")
    assert steps(root)[0] == END
    assert end_of(tmp_path, "first", 30) == END


def test_ended_is_ended(compiled: Any, tmp_path: Path) -> None:
    """Neither the same command nor one that asks for more steps goes on."""
    first = run(tmp_path, compiled)
    told = lines(tmp_path)
    for changes in ({}, {"steps": 60}):
        again = run(tmp_path, compiled, **changes)
        for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
            np.testing.assert_array_equal(a, b)
    assert lines(tmp_path) == told


@pytest.mark.slow  # resumption in general is tested by default
def test_one_that_is_interrupted_ends_at_the_same_step(compiled: Any, tmp_path: Path) -> None:
    """Its history is in the checkpoints, and so is what was seen before the interruption."""
    whole = run(tmp_path / "whole", compiled)
    for at in (7, 13, 17):

        def interrupted(number: int, at: int = at) -> Any:
            if number == at:
                raise KeyboardInterrupt
            return compiled

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", compiled, step_for=interrupted)
    parts = run(tmp_path / "parts", compiled)
    assert int(parts.step) == END
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"stop_when": None}, 30),
        ({"judged_after": 15}, 30),  # 0.607 is then the first, and 0.9 rises
        ({"stop_when": StopWhen(metric="nll", rise=0.01, share=0.25)}, 6),
    ],
    ids=["without", "after", "nats that stay"],
)
def test_what_is_judged(compiled: Any, tmp_path: Path, changes: dict[str, Any], end: int) -> None:
    assert int(run(tmp_path, compiled, **changes).step) == end


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"least": 0.405}, 3),
        ({"least": 0.1}, 30),
        ({"least": 0.45, "after": 3}, 6),
        ({"least": 0.45, "after": 6}, 30),
    ],
)
def test_one_that_has_failed_ends_at_once(
    compiled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, end: int
) -> None:
    rule = StopWhen(rise=0.0, **options)
    changes = {"stop_when": rule, "judged_after": rule.after or 0}
    assert int(run(tmp_path, compiled, **changes).step) == end
    told = [line for line in lines(tmp_path) if line["kind"] == "stop"]
    assert [(line["step"], line["now"]) for line in told] == [(end, CURVE[end])] * (end < 30)
    said = f"f1 is {CURVE[end]:g}, less than {rule.least:g}: it has failed"
    assert (said in capsys.readouterr().out) == (end < 30)


def test_nats_have_an_upper_bound() -> None:
    rule = StopWhen(metric="nll", rise=0.0, least=3.0)
    assert rule.ended([(1, rule.value({"a/nll": 2.9}))]) is None
    assert rule.ended([(1, rule.value({"a/nll": 3.1}))]) == {"now": pytest.approx(3.1)}


def test_a_fall_of_nats_is_a_rise() -> None:
    rule = StopWhen(metric="nll", rise=0.1, share=0.5)
    falling = [(1, rule.value({"a/nll": 3.0})), (2, rule.value({"a/nll": 2.5}))]
    assert rule.ended(falling) is None
    assert rule.ended([*falling, (4, rule.value({"a/nll": 2.45}))]) is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_every": 0}, "stop_when: it looks at the quick evaluation; set eval_every"),
        ({"stop_when": StopWhen(after=30)}, "stop_when.after: 30 of 30 steps leave none"),
    ],
)
def test_what_cannot_judge_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainConfig(**{"steps": 30, "stop_when": RULE} | options)
