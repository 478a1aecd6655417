"""Figures over seeds: what is printed of one, two and more, and how often the interval is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, t

from lw_jax.evaluate.bootstrap import interval
from lw_jax.results import row
from lw_jax.results.row import SHARE, Row, Seed, Z, combine

ROWS = [0.4, 0.6]


def test_one_seed_has_its_own_interval() -> None:
    one = combine([0.5], [ROWS], SHARE)
    assert (one.mean, one.low, one.high) == (0.5, 0.4, 0.6)
    assert str(one) == "0.500 [0.400, 0.600]"
    assert combine([0.5], [None]).low is None
    assert combine([0.5, 0.6, 0.7], [None] * 3).low is None
    assert combine([0.5, 0.6, 0.7], [ROWS, None, ROWS]).low is None  # one has none


def test_two_seeds_are_printed_both_with_the_rows_interval_of_the_first() -> None:
    assert str(combine([0.4, 0.6], [[0.3, 0.5], [0.55, 0.65]])) == "0.400 [0.300, 0.500], 0.600"
    assert str(combine([0.5, 0.5], [ROWS] * 2)) == "0.500 [0.400, 0.600], 0.500"


def test_the_same_rows_three_times_are_no_more_rows() -> None:
    same = combine([0.5] * 3, [ROWS] * 3)
    assert (same.low, same.high) == (pytest.approx(0.4), pytest.approx(0.6))
    assert combine([0.9995] * 3, [None] * 3).mean == 0.9995  # printed as one seed's is


@pytest.mark.parametrize(("seeds", "t"), [(3, 4.303), (4, 3.182), (5, 2.776)])
def test_the_spread_between_seeds_is_students(seeds: int, t: float) -> None:
    values = [0.0, 1.0, *[0.5] * (seeds - 2)]
    found = combine(values, [[v, v] for v in values])
    error = float(np.std(values, ddof=1)) / seeds**0.5
    assert found.low is not None
    assert found.mean - found.low == pytest.approx(t * error, rel=1e-3)
    both = combine(values, [[v - 0.3, v + 0.3] for v in values])
    assert both.low is not None
    assert both.mean - both.low == pytest.approx(((t * error) ** 2 + 0.3**2) ** 0.5, rel=1e-3)


def test_a_share_stays_between_0_and_1_and_another_figure_does_not() -> None:
    values, intervals = [0.0, 0.01, 0.05], [[0.0, 0.02], [0.0, 0.03], [0.02, 0.08]]
    share = combine(values, intervals, SHARE)
    assert share.low == 0
    assert share.high is not None
    assert 0.05 < share.high < 1
    nats = combine(values, intervals)
    assert nats.low is not None
    assert nats.low < 0
    high = combine([1.0, 0.99, 0.95], [[1, 1], [0.97, 1], [0.92, 0.98]], SHARE)
    assert high.high == 1


def test_a_metric_says_whether_it_is_a_share() -> None:
    def seed(value: float) -> Seed:
        method = {"em": value, "nll": value, "ci": {"em": [0, 0.1], "nll": [0, 0.1]}}
        return Seed({}, {"receivers": {"r": {"latent": method}}}, "r")

    row = Row("three", tuple(seed(v) for v in (0.0, 0.02, 0.1)))
    em, nll = row.figure("latent", "em"), row.figure("latent", "nll")
    assert em is not None
    assert nll is not None
    assert em.low == 0
    assert nll.low is not None
    assert nll.low < 0


def coverage(share: float, n: int, spread: float, seeds: int, repeats: int, common: bool) -> float:
    """How often the interval over the seeds holds the mean over all seeds and rows.

    Args:
        share: of the rows that a seed answers rightly, on average over all seeds.
        n: rows.
        spread: deviation between seeds, cut to what a share can be.
        seeds: how many.
        repeats: of the whole experiment.
        common: whether a row is as hard for one seed as for another; else seeds fail by chance.
    """
    rng = np.random.default_rng(17)
    truth = np.clip(share + spread * rng.standard_normal(200_000), 0, 1).mean()
    held = 0
    known: dict[int, Sequence[float]] = {}
    for _ in range(repeats):
        own = np.clip(share + spread * rng.standard_normal(seeds), 0, 1)
        rows = rng.random((1 if common else seeds, n))
        right = (rows < own[:, None]).sum(axis=1)
        for count in right:
            if int(count) not in known:
                answers = np.arange(n) < count
                known[int(count)] = interval(answers, seed=1, resamples=1000, bounds=(0, 1))
        found = combine((right / n).tolist(), [known[int(count)] for count in right], SHARE)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    return float(held / repeats)


@pytest.mark.parametrize(
    ("share", "spread", "seeds"), [(0.7, 0.0, 3), (0.7, 0.02, 5), (0.95, 0.06, 3), (0.2, 0.06, 5)]
)
def test_the_interval_over_seeds_holds(share: float, spread: float, seeds: int) -> None:
    """0.94 is the claim (below); 0.015 are two deviations of so few repeats."""
    assert coverage(share, 300, spread, seeds, 800, common=True) >= 0.94 - 0.015


@pytest.mark.slow  # some minutes
@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("n", [300, 1000])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.95])
def test_coverage_of_three_to_five_seeds(share: float, n: int, common: bool) -> None:
    """At least 0.94, less two deviations of 3,000 repeats (0.0087)."""
    found = {
        (seeds, spread): coverage(share, n, spread, seeds, 3000, common)
        for seeds in (3, 4, 5)
        for spread in (0.0, 0.02, 0.06)
    }
    assert min(found.values()) >= 0.94 - 0.0087, found


def test_wilsons_interval_is_that_of_as_many_rows() -> None:
    """Of 20 and 300 rows; without any spread there is none."""
    for right, n in ((6, 20), (19, 20), (210, 300)):
        share = right / n
        below, above = row._wilson(share, Z * (share * (1 - share) / n) ** 0.5)
        exact = binomtest(right, n).proportion_ci(0.95, "wilson")
        assert (share - below, share + above) == pytest.approx((exact.low, exact.high), abs=1e-6)
    assert row._wilson(0.0, 0.1) == row._wilson(1.0, 0.1) == row._wilson(0.5, 0.0) == (0.0, 0.0)


def of_arcsines(shares: list[float]) -> tuple[float, float]:
    angles = np.arcsin(np.sqrt(shares))
    reach = t.ppf(0.975, len(shares) - 1) * angles.std(ddof=1) / len(shares) ** 0.5
    low, high = np.clip([angles.mean() - reach, angles.mean() + reach], 0, np.pi / 2)
    return np.mean(shares) - np.sin(low) ** 2, np.sin(high) ** 2 - np.mean(shares)


def test_arcsines_by_hand() -> None:
    for shares in ([0.02, 0.1, 0.2], [0.6, 0.5, 0.55, 0.7], [0.0, 0.01, 0.05], [1.0, 0.99, 0.93]):
        assert row._of_arcsines(shares) == pytest.approx(of_arcsines(shares), abs=1e-9)


def test_an_interval_of_three_by_hand() -> None:
    """Rows whose intervals reach further on one side; the wider of two ways on each side."""
    values = [0.1, 0.14, 0.2]
    intervals = [[0.08, 0.16], [0.11, 0.19], [0.19, 0.27]]
    below, above = 0.06 / 3, 0.18 / 3
    student = t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5
    mean = sum(values) / 3
    plain = combine(values, intervals)
    assert plain.low == pytest.approx(mean - np.hypot(below, student))
    assert plain.high == pytest.approx(mean + np.hypot(above, student))
    wilson = row._wilson(mean, (below + above) / 2)
    rows = max(below, wilson[0]), max(above, wilson[1])
    assert rows[0] == wilson[0] and rows[1] == above  # one of each
    seeds = [max(student, arc) for arc in of_arcsines(values)]
    share = combine(values, intervals, SHARE)
    assert share.low == pytest.approx(max(0, mean - np.hypot(rows[0], seeds[0])))
    assert share.high == pytest.approx(mean + np.hypot(rows[1], seeds[1]))
    near = [0.9, 0.92, 0.93]
    found = combine(near, [[v - 0.01, v + 0.01] for v in near], SHARE)
    rows = row._wilson(sum(near) / 3, 0.01)
    low = sum(near) / 3 - np.hypot(
        max(0.01, rows[0]), max(of_arcsines(near)[0], row._of_mean(near)[0])
    )
    assert found.low == pytest.approx(low)


def test_a_figure_is_there_where_every_seed_has_it() -> None:
    def seed(**method: object) -> Seed:
        return Seed({}, {"receivers": {"r": {"latent": method} if method else {}}}, "r")

    both = Row("two", (seed(em=0.2, own=3.0), seed(em=0.4, own=5.0)))
    assert both.figure("latent", "em") == combine([0.2, 0.4], [None, None])
    assert both.figure("latent", "own") is not None  # a metric that is not known is no share
    assert both.figure("latent", "f1") is None
    assert Row("two", (seed(em=0.2), seed())).figure("latent", "em") is None
    assert Row("two", (seed(em=0.2), seed(f1=0.2))).figure("latent", "em") is None
    training = {"training": {"one": {"steps": 1}, "two": {"steps": 2}}}
    assert Seed(training, {}, "").training == {"steps": 2}
    assert Seed({"training": {}}, {}, "").training == {}


def test_where_a_seed_has_no_interval_there_is_none() -> None:
    for seeds in (1, 2, 3):
        found = combine([1.0, 1.5, 2.0][:seeds], [[None, None], [0.0, 2.0], [1.0, 3.0]][:seeds])
        assert (found.low, found.high) == (None, None)
