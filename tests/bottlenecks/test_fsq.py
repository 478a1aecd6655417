"""FSQ: exactly L values, straight-through gradients, masked slots, what is reported."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bottlenecks import codes, fsq
from lw_jax.errors import UserError
from lw_jax.layers.straight_through import straight_through
from tests.tiny.bottlenecks import Part, draw, latent, usage

LEVELS = tuple(range(2, 10))


def test_every_level_has_exactly_its_values() -> None:
    """From far left to far right; the earlier systems had 7 of 8."""
    sweep = np.concatenate([np.linspace(-6, 6, 4001), [-1e9, -50, 50, 1e9]])
    bound = jax.jit(lambda x: fsq.bound(x, LEVELS)[0])
    bounded = np.asarray(bound(np.float32(sweep[:, None].repeat(8, 1))))
    values = np.round(bounded).astype(int)
    for column, size in zip(values.T, LEVELS, strict=True):
        assert sorted(set(column.tolist())) == [v - size // 2 for v in range(size)], size
    sizes = np.asarray(LEVELS)  # the last is as far from the boundary as in the paper: 0.1 %
    outermost = (sizes - 1) * (1 - 1e-3) / 2 - np.where(sizes % 2 == 0, 0.5, 0.0)
    np.testing.assert_allclose(bounded[-1], outermost, atol=1e-6)
    middle = np.asarray(bound(np.zeros((1, 8), np.float32)))
    assert np.abs(middle[0, 1:]).max() < 0.02  # L = 2 has no value in the middle


def test_codes_count_from_zero_and_a_masked_slot_says_nothing() -> None:
    part = Part(fsq.Config(LEVELS), 16)
    mask = np.ones((4, 5), bool)
    mask[1, 3:] = mask[2, 0] = False
    x = draw(4, 5, 16, std=30.0)
    out, intermediates = part(latent(x, mask))
    found = np.asarray(intermediates["codes"])
    assert found.shape == (4, 5, 8) and found.dtype == np.int32
    assert (found[~mask] == -1).all()
    assert (found[mask] >= 0).all()
    assert (found[mask] < np.asarray(LEVELS)).all()
    assert not np.asarray(out.slots)[~mask].any()
    assert np.asarray(out.slots)[mask].any(-1).all()
    assert float(intermediates["saturation"]) > 0.8
    steps = np.asarray(LEVELS) // 2  # before rounding and after it, both in [-1, 1]
    before, after = (np.asarray(intermediates[name])[mask] for name in ("bounded", "values"))
    assert np.abs(before).max() <= 1 and np.abs(after).max() == 1
    np.testing.assert_allclose(np.round(before * steps), after * steps, atol=1e-6)
    assert float(part(latent(x / 300, mask))[1]["saturation"]) < 0.05
    x[~mask] = 1e4  # nor does it move a figure
    for name, value in part(latent(x, mask))[1].items():
        if name not in ("values", "bounded"):
            np.testing.assert_array_equal(value, intermediates[name], err_msg=name)


def test_the_gradient_passes_the_rounding_and_not_the_bound() -> None:
    z, weights = draw(3, 8), draw(3, 8, seed=1)

    def rounded(z: jax.Array) -> jax.Array:
        bounded, _ = fsq.bound(z, LEVELS)
        return jnp.sum(weights * straight_through(bounded, jnp.round(bounded)))

    def smooth(z: jax.Array) -> jax.Array:
        return jnp.sum(weights * fsq.bound(z, LEVELS)[0])

    @jax.jit
    def both(z: jax.Array) -> Any:
        return [jax.value_and_grad(how)(z) for how in (rounded, smooth)]

    (one, its), (other, smooths) = jax.device_get(both(z))
    assert one != other
    np.testing.assert_array_equal(its, smooths)
    assert np.abs(its).min() > 0
    # of the whole part: what is put in and both projections
    part = Part(fsq.Config((8, 5)), 6)
    grads = jax.jit(
        jax.grad(lambda p, x: jnp.sum(part(latent(x), p)[0].slots ** 2), argnums=(0, 1))
    )(part.params, draw(2, 3, 6))
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("levels", [(8,) * 8, (5,) * 32, LEVELS])
def test_slots_come_back_from_codes_exactly(levels: tuple[int, ...]) -> None:
    part = Part(fsq.Config(levels), 12)
    mask = np.ones((1, 7), bool)
    mask[0, 4] = False
    out, intermediates = part(latent(draw(1, 7, 12, std=3.0), mask))
    again = part.slots_of(out.replace(slots=np.maximum(np.asarray(intermediates["codes"]), 0)))
    np.testing.assert_array_equal(out.slots, again.slots)


def test_usage_of_a_code_space_too_large_to_count() -> None:
    """5^32 codes: per level, and distinct tuples among the slots that there are."""
    part = Part(fsq.Config((5,) * 32), 16)
    same = np.broadcast_to(draw(1, 6, 16), (8, 6, 16))
    spread = {k: float(v) for k, v in _usage(part, draw(8, 6, 16)).items()}
    rows_alike = _usage(part, same)
    collapsed = _usage(part, np.broadcast_to(same[:1, :1], (8, 6, 16)))
    assert spread["usage"] > 0.95 and spread["distinct"] == 1.0
    assert 3.5 < spread["perplexity"] <= 5.0
    assert float(rows_alike["distinct"]) == pytest.approx(1 / 8)
    assert float(collapsed["distinct"]) == pytest.approx(1 / 48)
    assert float(collapsed["perplexity"]) == pytest.approx(1.0)
    assert float(collapsed["usage"]) == pytest.approx(1 / 5)


def _usage(part: Part, slots: np.ndarray) -> dict[str, jax.Array]:
    return usage(part(latent(slots))[1])


def test_usage_by_hand_with_mixed_levels() -> None:
    found = jnp.asarray([[[0, 2], [1, 2], [-1, -1]], [[1, 0], [1, 0], [0, 2]]])
    counts = jax.jit(codes.counts_of, static_argnums=1)(found, (2, 4))
    np.testing.assert_array_equal(
        counts, [[[1, 1, -1, -1], [0, 0, 2, 0]], [[1, 2, -1, -1], [2, 0, 1, 0]]]
    )
    said = usage({"codes": found, "counts": counts})
    assert float(said["usage"]) == pytest.approx((1 + 2 / 4) / 2)
    assert float(said["distinct"]) == pytest.approx(3 / 5)
    entropy = -0.6 * np.log(0.6) - 0.4 * np.log(0.4)
    assert float(said["perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-5)
    assert codes.usage({}) == codes.usage({"bottleneck": {}}) == {}


def test_of_no_slot_there_is_no_use() -> None:
    """Figures of nothing are finite, and so is how saturated it is."""
    out, notes = Part(fsq.Config((3, 5)), 6)(latent(50 * draw(2, 3, 6), np.zeros((2, 3), bool)))
    assert not np.asarray(out.slots).any()
    assert float(notes["saturation"]) == 0
    said = {name: float(value) for name, value in usage(notes).items()}
    assert said == {"usage": 0, "perplexity": 1, "distinct": 0}


@pytest.mark.parametrize("values", [2, 9])
def test_distinct_is_what_numpy_counts(values: int) -> None:
    found = np.random.default_rng(values).integers(0, values, (6, 40, 5)).astype(np.int32)
    found[:, 7] = -1
    real = found[found[..., 0] >= 0]
    assert int(jax.jit(codes.distinct)(found)) == len(np.unique(real, axis=0))
    assert int(jax.jit(codes.distinct)(np.full_like(found, -1))) == 0


def test_levels_that_are_none() -> None:
    for bad in ((), (8, 1)):
        with pytest.raises(UserError, match=r"levels(\.\d)?: expected (one or more|at least 2)"):
            fsq.Config(bad)
