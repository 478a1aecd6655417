"""The closed-form map: it is the ridge solution, from sums of batches, of aligned tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors.least_squares import LeastSquares, Sums, solve, sums
from lw_jax.errors import UserError

RNG = np.random.default_rng(0)
ROWS, TOKENS, OTHER, FEATURES, WIDTH = 6, 10, 14, 5, 3


def batch(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, TOKENS, FEATURES)).astype(np.float32)
    e = rng.normal(size=(ROWS, OTHER, WIDTH)).astype(np.float32)
    first = rng.integers(0, OTHER - 2, (ROWS, TOKENS))
    spans = np.stack([first, first + rng.integers(0, 3, first.shape)], -1).astype(np.int32)
    return x, e, spans, rng.random((ROWS, TOKENS)) < 0.8


def added(parts: list[Sums]) -> Sums:
    return Sums(*(sum(np.asarray(part[i], np.float64) for part in parts) for i in range(4)))


def pairs(x, e, spans, mask):
    """Features and targets token by token."""
    for b in range(ROWS):
        for t in range(TOKENS):
            first, stop = spans[b, t]
            if mask[b, t] and stop > first:
                yield x[b, t], e[b, first:stop].mean(axis=0)


def test_the_fit_is_ridge_regression_on_the_overlapping_tokens():
    batches = [batch(seed) for seed in range(3)]
    found = added([sums(*map(jnp.asarray, one)) for one in batches])
    both = [pair for one in batches for pair in pairs(*one)]
    x, y = (np.stack(part).astype(np.float64) for part in zip(*both, strict=True))
    assert found.tokens == len(x)
    l2 = 0.01
    fit = solve(LeastSquares(l2=l2), found)
    penalty = l2 * np.sum(x * x) / FEATURES
    # Penalised least squares as ordinary least squares with rows for the penalty.
    tall = np.vstack([np.c_[x, np.ones(len(x))], np.sqrt(penalty) * np.eye(FEATURES + 1)[:-1]])
    expected = np.linalg.lstsq(tall, np.vstack([y, np.zeros((FEATURES, WIDTH))]), rcond=None)[0]
    np.testing.assert_allclose(fit.kernel, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(fit.bias, expected[-1], atol=1e-4)
    error = np.sum(np.square(y - x @ fit.kernel - fit.bias))
    share = 1 - error / np.sum(np.square(y - y.mean(axis=0)))
    assert fit.explained == pytest.approx(share, abs=1e-4)


def test_a_linear_truth_is_found():
    x, e, spans, _ = batch(0)
    spans[..., 1] = spans[..., 0] + 1
    kernel, bias = RNG.normal(size=(FEATURES, WIDTH)), RNG.normal(size=WIDTH)
    for b in range(ROWS):
        spans[b, :, 0] = np.arange(TOKENS)
        spans[b, :, 1] = spans[b, :, 0] + 1
        e[b, :TOKENS] = x[b] @ kernel + bias
    mask = np.ones((ROWS, TOKENS), bool)
    fit = solve(LeastSquares(l2=0.0), added([sums(*map(jnp.asarray, (x, e, spans, mask)))]))
    np.testing.assert_allclose(fit.kernel, kernel, atol=1e-4)
    np.testing.assert_allclose(fit.bias, bias, atol=1e-4)
    assert fit.explained == pytest.approx(1.0, abs=1e-5)


def test_too_few_tokens_are_said():
    few = sums(*(jnp.asarray(part[:1, :2]) for part in batch(0)))
    with pytest.raises(UserError, match="do not determine a map of 5 features"):
        solve(LeastSquares(l2=0.0), few)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_what_is_explained_does_not_depend_on_how_loud_targets_are(size: float):
    x, e, spans, mask = batch(0)
    plain = solve(LeastSquares(l2=0.01), sums(*map(jnp.asarray, (x, e, spans, mask))))
    found = solve(LeastSquares(l2=0.01), sums(*map(jnp.asarray, (x, size * e, spans, mask))))
    assert 0.05 < plain.explained < 0.95
    assert found.explained == pytest.approx(plain.explained, rel=1e-3)


def test_of_targets_that_are_all_alike_nothing_is_explained():
    x, e, spans, mask = batch(0)
    found = solve(LeastSquares(), sums(*map(jnp.asarray, (x, 0 * e, spans, mask))))
    assert found.explained == 0
    assert not found.kernel.any() and not found.bias.any()
