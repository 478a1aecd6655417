"""Bootstrap intervals on distributions whose mean is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lw_jax.config import parse
from lw_jax.errors import UserError
from lw_jax.evaluate import bootstrap
from lw_jax.evaluate.config import EvaluateConfig


def _coverage(groups: int, each: int, grouped: bool, seed: int) -> float:
    """How often the interval of a mean holds the true one; rows of a group are equal."""
    rng = np.random.default_rng(seed)
    hits = 0
    for trial in range(300):
        values = np.repeat(rng.exponential(1.0, groups), each)
        label = list(np.repeat(np.arange(groups), each)) if grouped else None
        low, high = bootstrap.interval(values, groups=label, seed=trial, resamples=400)
        hits += low <= 1.0 <= high
    return hits / 300


def test_intervals_cover_the_mean_95_percent_of_the_time() -> None:
    assert 0.91 < _coverage(100, 1, grouped=False, seed=0) < 0.99


def test_rows_of_one_context_are_resampled_together() -> None:
    assert _coverage(100, 5, grouped=True, seed=1) > 0.91
    assert _coverage(100, 5, grouped=False, seed=1) < 0.75  # what ignoring the groups would claim


def test_an_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    low, high = bootstrap.interval(values, seed=0, resamples=4000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.02)


def test_same_seed_same_bits_and_counts_weigh() -> None:
    total, count = np.array([2.0, 30.0, 5.0]), np.array([1, 10, 0])
    a = bootstrap.interval(total, count, seed=7)
    assert a == bootstrap.interval(total, count, seed=7)
    assert a == (2.0, 3.0)  # the ratio of sums lies between the two rows that count
    assert np.isnan(bootstrap.interval([1.0], [0], seed=0)).all()


def test_paired_difference_is_narrower_than_the_unpaired_one() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 5, 200)
    mean, (low, high) = bootstrap.paired(base + 1 + rng.normal(0, 0.1, 200), base, seed=0)
    assert low < 1 < high
    assert mean == np.float64(mean)
    assert high - low < 0.1


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (20, 20), (0, 1), (500, 500)])
def test_all_wrong_or_all_right_is_no_certainty(right: int, rows: int) -> None:
    values = np.arange(rows) < right
    exact = binomtest(right, rows).proportion_ci(0.95, "exact")
    found = bootstrap.interval(values, seed=0, bounds=(0, 1))
    np.testing.assert_allclose(found, (exact.low, exact.high), atol=1e-12)
    if rows > 1:  # what is claimed without it
        assert bootstrap.interval(values, seed=0) == (right / rows,) * 2


def test_one_value_everywhere_counts_contexts_not_rows() -> None:
    low, high = bootstrap.interval([0] * 40, groups=list(range(10)) * 4, seed=0, bounds=(0, 1))
    assert (low, high) == bootstrap.interval([0] * 10, seed=0, bounds=(0, 1))
    assert 0.25 < high < 0.35
    # An entity of every second row, and none found: rows without a part are no observation.
    assert high == bootstrap.interval([0] * 20, [0, 3] * 10, seed=0, bounds=(0, 1))[1]


def test_two_methods_that_never_differ_may_differ_elsewhere() -> None:
    mean, (low, high) = bootstrap.paired([1, 0] * 10, [1, 0] * 10, seed=0, bounds=(0, 1))
    assert mean == 0
    assert -0.2 < low < -0.1 < 0.1 < high < 0.2
    # Of values from 1 to 3 a difference may be twice as large.
    _, twice = bootstrap.paired([3, 1] * 10, [3, 1] * 10, seed=0, bounds=(1, 3))
    np.testing.assert_allclose(twice, (2 * low, 2 * high))


def test_as_many_resamples_as_asked() -> None:
    """Of one resample the interval is its mean alone."""
    low, high = bootstrap.interval(np.arange(50.0), seed=0, resamples=1)
    assert low == high


def test_what_is_held_at_once_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of three resamples, of one, and all at once."""
    values = np.random.default_rng(4).normal(0, 1, 10)
    whole = bootstrap.interval(values, seed=1, resamples=7)
    drawn = np.random.default_rng(1).integers(0, 10, (7, 10))
    wanted = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    np.testing.assert_allclose(whole, wanted, rtol=1e-12)
    for held in (30, 10, 3):
        monkeypatch.setattr(bootstrap, "_CHUNK", held)
        assert bootstrap.interval(values, seed=1, resamples=7) == whole


def test_the_level_is_the_share_between_the_ends() -> None:
    values = np.random.default_rng(5).normal(0, 1, 50)
    low, high = bootstrap.interval(values, seed=1, level=0.8)
    wide = bootstrap.interval(values, seed=1)
    assert wide[0] < low < high < wide[1]
    found = bootstrap.interval([1] * 9, seed=0, bounds=(0, 1), level=0.8)
    exact = binomtest(9, 9).proportion_ci(0.8, "exact")
    np.testing.assert_allclose(found, (exact.low, exact.high), atol=1e-12)


def test_a_group_without_a_part_is_no_group() -> None:
    """And one part is enough to be one."""
    groups = ["a", "a", "b", "c"]
    found = bootstrap.interval([1, 0, 0, 2], [1, 0, 0, 2], groups=groups, seed=0, bounds=(0, 1))
    assert found == bootstrap.interval([1, 1], seed=0, bounds=(0, 1))


def test_of_one_text_an_interval_without_bounds_cannot_be_told() -> None:
    ends = bootstrap.interval([2.0, 3.0], groups=["a", "a"], seed=0)
    assert np.isnan(ends).all()
    low, high = bootstrap.interval([2.0, 3.0], groups=["a", "b"], seed=0)
    assert (low, high) == (2.0, 3.0)
    assert bootstrap.interval([1.0], seed=0, bounds=(0, 1)) == (pytest.approx(0.025), 1.0)


def test_an_evaluation_draws_enough_to_have_ends() -> None:
    """Of fewer than forty draws none lies in the outer 2.5 % of an end; of one both ends are it."""
    with pytest.raises(UserError, match="at least 40"):
        parse.build(EvaluateConfig, {"bootstrap": 39})
    assert parse.build(EvaluateConfig, {"bootstrap": 40}).bootstrap == 40
