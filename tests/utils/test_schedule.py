"""Schedules: a decay's factor at its begin, on its way, at its end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.schedule import Rising, Schedule

STEPS, FINAL = 100, 0.1


@pytest.mark.parametrize(
    ("shape", "quarter", "middle"),
    [("cosine", 0.868198, 0.55), ("linear", 0.775, 0.55), ("constant", 1.0, 1.0)],
)
def test_a_decay_from_begin_to_end(shape: str, quarter: float, middle: float) -> None:
    schedule = Schedule(shape=shape, final=FINAL)  # type: ignore[arg-type]
    end = 1.0 if shape == "constant" else FINAL
    found = [float(schedule(step, STEPS)) for step in (0, 25, 50, 100, 101)]
    assert found == pytest.approx([1.0, quarter, middle, end, end], abs=1e-6)


def test_a_decay_begins_after_the_ramp_and_ends_at_the_stop() -> None:
    schedule = Schedule(shape="cosine", ramp=10, start=10, stop=60)
    found = [float(schedule(step, STEPS)) for step in (9, 10, 19, 20, 40, 59, 60)]
    assert found == pytest.approx([0, 0.1, 1, 1, 0.5, 0.001541, 0], abs=1e-6)


def test_a_share_of_the_steps_is_held_before_the_decay() -> None:
    """Of 100 steps after a ramp of 10 a half: the decay lasts from 60 to 110."""
    schedule = Schedule(shape="linear", ramp=10, hold=0.5)
    found = [float(schedule(step, 110)) for step in (4, 10, 60, 85, 110)]
    assert found == pytest.approx([0.5, 1, 1, 0.5, 0], abs=1e-6)
    assert float(Schedule(shape="linear", hold=0.5, stop=80)(60, 110)) == pytest.approx(0.5)


def test_the_optimisers_own_decays_to_nothing() -> None:
    schedule = OptimiserConfig().schedule
    assert schedule.shape == "cosine"
    after = schedule.start + schedule.ramp
    middle = after + (1000 - after) // 2
    assert float(schedule(middle, 1000)) == pytest.approx((1 + schedule.final) / 2, abs=2e-3)
    assert float(schedule(1000, 1000)) == pytest.approx(schedule.final, abs=1e-6)


def by_hand(s: Schedule, step: int, steps: int) -> float:
    last = steps if s.stop is None else s.stop
    if step < s.start or (s.stop is not None and step >= s.stop):
        return 0.0
    up = min(1.0, (step - s.start + 1) / s.ramp) if s.ramp else 1.0
    begin = s.start + s.ramp
    begin += s.hold * max(0, last - begin)
    done = min(1.0, max(0.0, (step - begin) / max(1, last - begin)))
    down = {
        "constant": 1.0,
        "linear": 1 + done * (s.final - 1),
        "cosine": s.final + (1 - s.final) * (1 + math.cos(math.pi * done)) / 2,
    }
    return up * down[s.shape]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("stop", [None, 4, 12, 13])
def test_every_step_of_schedules_by_hand(shape: str, stop: int | None) -> None:
    for start, ramp, hold, final in ((0, 0, 0.0, 0.0), (3, 5, 0.5, 0.25), (3, 9, 0.2, 0.1)):
        schedule = Schedule(shape, start, stop, ramp, final, hold)  # type: ignore[arg-type]
        found = schedule(np.arange(24), 20).tolist()
        wanted = [by_hand(schedule, step, 20) for step in range(24)]
        assert found == pytest.approx(wanted, abs=1e-6)


def test_what_is_known_of_a_schedule_before_it_runs() -> None:
    schedule = Schedule(start=3, stop=7, ramp=8, on="text")
    found = [schedule.active(step, "text") for step in (2, 3, 6, 7)]
    assert found == [False, True, True, False]
    assert not schedule.active(4, "latent")
    assert Schedule(start=3).active(3) and Schedule(start=3).active(10**6, "text")
    assert [schedule.ever(steps) for steps in (3, 4)] == [False, True]
    assert [schedule.highest(steps) for steps in (2, 4, 7, 20)] == [0, 1 / 8, 0.5, 0.5]
    assert Schedule(start=2, ramp=4).highest(20) == Schedule(start=2).highest(3) == 1
    assert Schedule(start=2, ramp=4).highest(4) == 0.5
    assert [Schedule(gate=g, halve=h).by_cosine for g, h in ((None, 0.1), (0.1, None))] == [
        True
    ] * 2
    assert not Schedule().by_cosine
    with pytest.raises(UserError, match="always 0"):
        Schedule(start=3, stop=3)


def test_a_probability_that_rises() -> None:
    rising = Rising(0.2, 0.6, 4)
    found = [float(rising(step)) for step in (0, 1, 4, 9)]
    assert found == pytest.approx([0.2, 0.3, 0.6, 0.6])
    assert float(Rising(0.2, 0.6)(0)) == pytest.approx(0.6)
