"""Tasks: which one every step has, and what its batches are."""

from __future__ import annotations

from collections import Counter

import pytest

from lw_jax.errors import UserError
from lw_jax.train.config import Level, Task, TrainConfig
from lw_jax.train.curriculum import Timetable, phases_of, turns_of


def test_without_tasks_every_phase_counts_its_own_batches() -> None:
    turns = turns_of(phases_of((Level(0.5), Level(0.5, level=2)), 4))
    assert [(t.phase, t.task, t.stream, t.batch) for t in turns] == [
        (0, None, "0", 0),
        (0, None, "0", 1),
        (1, None, "1", 0),
        (1, None, "1", 1),
    ]


def test_tasks_have_their_shares_in_every_stretch_and_go_on_over_phases() -> None:
    curriculum = (Level(0.25, mix={"a": 3, "b": 1}), Level(0.75, mix={"b": 0.4, "c": 0.6, "a": 0}))
    turns = turns_of(phases_of(curriculum, 400))
    assert Counter(t.task for t in turns) == {"a": 75, "b": 25 + 120, "c": 180}
    for end in range(1, 101):
        assert abs(sum(t.task == "a" for t in turns[:end]) - 0.75 * end) < 1
    for task in "abc":
        own = [t.batch for t in turns if t.task == task]
        assert own == list(range(len(own)))


def test_a_batch_comes_from_the_stream_of_its_step() -> None:
    turns = turns_of(phases_of((Level(1.0, mix={"a": 1, "b": 1}),), 4))
    table = Timetable(turns, {name: lambda n, name=name: f"{name}{n}" for name in "ab"})
    assert [table.batch(step) for step in range(4)] == ["a0", "b0", "a1", "b1"]


def test_a_task_is_the_stage_but_for_what_it_names() -> None:
    mix = (Level(1.0, ratio=2, mix={"short": 1, "long": 1}),)
    cfg = TrainConfig(
        steps=4,
        batch_size=8,
        questions=3,
        curriculum=mix,
        tasks={"short": Task(level=1, batch_size=16), "long": Task(level=3, questions=1)},
    )
    short, long = cfg.of("short"), cfg.of("long")
    assert (short.batch_size, short.questions, short.curriculum[0].level) == (16, 3, 1)
    assert (long.batch_size, long.questions, long.curriculum[0].level) == (8, 1, 3)
    assert short.curriculum[0].ratio == 2
    assert TrainConfig(steps=4).each() == {None: TrainConfig(steps=4)}


@pytest.mark.parametrize(
    ("mixes", "accumulate", "said"),
    [
        ([{"a": 1}, {}], 1, r"curriculum\.1\.mix: missing"),
        ([{"a": 1}, {"c": 1}], 1, r"curriculum\.1\.mix: no task 'c'; there are: a, b"),
        ([{"a": 1}], 1, r"tasks\.b: in no mix"),
        ([{"a": 1, "b": 0}], 1, r"tasks\.b: in no mix of the curriculum, or of weight"),
        ([{"a": 1, "b": 1}], 4, r"tasks\.b\.batch_size: accumulate 4 does not divide 6"),
    ],
)
def test_wrong_mixes_are_one_line(
    mixes: list[dict[str, float]], accumulate: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        TrainConfig(
            steps=4,
            batch_size=8,
            accumulate=accumulate,
            tasks={"a": Task(), "b": Task(batch_size=6)},
            curriculum=tuple(Level(1 / len(mixes), mix=mix) for mix in mixes),
        )


def test_a_mix_has_no_level_and_some_weight() -> None:
    with pytest.raises(UserError, match="level: with a mix each task has its own"):
        Level(1.0, level=2, mix={"a": 1})
    with pytest.raises(UserError, match="mix: all weights are 0"):
        Level(1.0, mix={"a": 0})
