"""Schedules: a decay's factor at its begin, on its way, at its end."""

from __future__ import annotations

import pytest

from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.utils.schedule import Schedule

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
