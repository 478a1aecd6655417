"""The share of the text's worth that a latent carries."""

import numpy as np
import pytest

from lw_jax.evaluate.normalised import Line, score

RNG = np.random.default_rng(3)
N = 400
GROUPS = [i // 10 for i in range(N)]


def rights(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(N) < share).astype(float)


def test_it_is_one_for_the_text_and_nought_for_nothing():
    text, nothing = Line(rights(0.8, 0)), Line(rights(0.1, 1))
    for line, expected in ((text, 1.0), (nothing, 0.0)):
        found = score(line, text, nothing, GROUPS, seed=0, resamples=200)
        assert found is not None
        assert found.share == pytest.approx(expected, abs=1e-12)
        assert found.low == pytest.approx(expected, abs=1e-12)
        assert found.high == pytest.approx(expected, abs=1e-12)


def test_a_figure_where_less_is_better_and_rows_have_several_parts():
    count = RNG.integers(1, 6, N).astype(float)
    text, nothing = Line(0.5 * count, count), Line(3.5 * count, count)
    found = score(Line(1.25 * count, count), text, nothing, GROUPS, seed=0, resamples=50)
    assert found is not None
    assert found.share == pytest.approx(0.75)
    assert (found.latent, found.text, found.nothing) == pytest.approx((1.25, 0.5, 3.5))
    assert found.of_text == pytest.approx(2.5)


def test_where_the_text_is_worth_little_there_is_no_score():
    near = Line(rights(0.30, 0)), Line(rights(0.15, 1))
    assert score(near[0], *near, GROUPS, seed=0) is None
    assert score(near[0], *near, GROUPS, seed=0, least=0.05, resamples=50) is not None


def test_articles_and_seeds_widen_the_interval():
    """Rows of an article that are right together count as one; seeds that differ count too."""
    text, nothing = Line(np.ones(N)), Line(np.zeros(N))

    def width(total, groups) -> float:
        found = score(Line(total), text, nothing, groups, seed=0, resamples=400)
        assert found is not None
        return found.high - found.low

    each = np.arange(N)
    together = np.repeat(rights(0.5, 5)[:40], 10)
    assert width(together, GROUPS) > 2 * width(together, list(each))
    same = np.tile(rights(0.5, 6), (3, 1))
    spread = np.stack([rights(share, 7) for share in (0.3, 0.5, 0.7)])
    assert width(spread, list(each)) > 1.5 * width(same, list(each))


def test_its_interval_holds_the_truth():
    """Simulated: 60 articles of 8 questions, three seeds; at least 0.9 of 100 intervals hold."""
    rng = np.random.default_rng(11)
    held = 0
    groups = [i // 8 for i in range(480)]
    for trial in range(100):
        hard = rng.normal(0, 0.15, 60)[[*groups]]
        at = rng.random(480)
        text = (at < 0.75 + hard).astype(float)
        nothing = (at < 0.1 + hard).astype(float)
        drift = rng.normal(0, 0.02, 3)
        latent = np.stack([(rng.random(480) < 0.5 + hard + d) for d in drift]).astype(float)
        found = score(Line(latent), Line(text), Line(nothing), groups, seed=trial, resamples=200)
        assert found is not None
        held += found.low <= 0.4 / 0.65 <= found.high
    assert held >= 90


def test_a_latent_that_ties_with_the_text_in_every_row_is_not_certain():
    text, nothing = Line(np.array([1.0, 0.5, 1.0, 0.5])), Line(np.zeros(4))
    groups = ["a", "b", "c", "d"]
    same = score(Line(np.array(text.total)), text, nothing, groups, seed=0)
    assert same is not None
    assert same.share == 1.0 and np.isnan([same.low, same.high]).all()
    assert same.to_json()["ci"] is None and str(same) == "1.00"
    itself = score(text, text, nothing, groups, seed=0)  # 1 by what it is
    assert itself is not None and (itself.low, itself.high) == (1.0, 1.0)
