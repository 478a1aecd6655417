"""8- and 4-bit storage: rounding within its bound, an einsum equal to the restored weight's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from lw_jax.errors import UserError
from lw_jax.models.quant import KINDS, NF4, block_size, dequantise, einsum, quantise


@partial(jax.jit, static_argnums=1)
def stored_and_back(w, kind):
    """A matrix as it is stored, and restored."""
    stored = quantise(w, 1, kind)
    return stored, dequantise(stored, jnp.float32)


@pytest.mark.parametrize(("spec", "fan_in"), [("btd,dnh->btnh", 1), ("btnh,nhd->btd", 2)])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_einsum_equals_the_restored_weight(kind, spec, fan_in):
    shape = (32, 4, 8) if fan_in == 1 else (4, 8, 32)
    rng = np.random.default_rng(0)
    w = np.float32(rng.standard_normal(shape) * np.linspace(0.1, 2.0, shape[-1]))
    x = np.float32(rng.standard_normal((2, 3, *shape[:fan_in])))

    @jax.jit
    def computed(w, x):
        stored = quantise(w, fan_in, kind)
        return dequantise(stored, jnp.float32), einsum(spec, x, stored)

    back, product = map(np.asarray, computed(w, x))
    assert back.shape == w.shape
    np.testing.assert_allclose(product, np.einsum(spec, x, back), atol=1e-4)
    # Half of the widest gap between two levels, in units of the largest value that shares a scale.
    bound = 0.5 / 127 if kind == "int8" else np.diff(NF4).max() / 2
    axes = tuple(range(fan_in))
    worst = np.abs(back - w).max(axes) / np.abs(w).max(axes)
    assert worst.max() <= bound * 1.0001
    assert worst.max() > bound / 4


def test_levels_are_kept_exactly():
    """Values that sit on levels, in each block with its own scale, come back as they were."""
    codes = np.random.default_rng(0).integers(0, 16, (128, 5))
    codes[[0, 64]] = 15
    w = NF4[codes] * np.repeat([0.5, 4.0], 64)[:, None]
    stored, back = stored_and_back(w, "nf4")
    assert stored.codes.shape == (64, 5)
    assert stored.codes.dtype == jnp.uint8
    np.testing.assert_allclose(back, w, rtol=1e-6)


def test_zeros_stay_zeros():
    for kind in KINDS:
        _, back = stored_and_back(np.zeros((4, 3), np.float32), kind)
        assert (np.asarray(back) == 0).all()


def test_blocks_divide_the_inputs():
    assert [block_size(n) for n in (4096, 48, 96, 130)] == [64, 48, 48, 26]
    with pytest.raises(UserError, match="odd"):
        block_size(33)


def test_unknown_kind():
    with pytest.raises(UserError, match="int8, nf4"):
        quantise(jnp.zeros((2, 2)), 1, "int3")


def test_a_row_alone_is_multiplied_like_others() -> None:
    """In a wider dtype it goes with a copy of itself."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((3, 64), (64, 40)))

    @jax.jit
    def computed(x, w):
        of = partial(einsum, "nd,dv->nv", w=w, out=jnp.float32)
        return of(x[:1]), of(x), jax.grad(lambda x: of(x)[0, 3])(x[:1])

    alone, all_rows, given = computed(x, w)
    assert alone.shape == (1, 40)
    np.testing.assert_allclose(alone, all_rows[:1], rtol=1e-5)
    np.testing.assert_array_equal(given[0], np.asarray(w)[:, 3])


def test_the_levels_are_quantiles_of_a_normal_distribution() -> None:
    """Eight of each sign, 0 among the upper ones (Dettmers et al. 2023, appendix E)."""
    ends = 0.9677083
    below = norm.ppf(np.linspace(1 - ends, 0.5, 8)[:-1])
    above = norm.ppf(np.linspace(0.5, ends, 9))
    np.testing.assert_allclose(NF4, np.concatenate([below, above]) / norm.ppf(ends), atol=2e-5)


def test_what_is_stored_by_hand() -> None:
    """One scale for an output; two codes of four bits in a byte, the first one in the lower half;
    what lies on the middle of two levels is the lower one's."""
    w = np.asarray([[1.0, -0.2], [-4.0, 0.3], [2.5, 0.5], [0.0, -0.6]], np.float32)
    stored, _ = stored_and_back(w, "int8")
    np.testing.assert_allclose(stored.scale, [[4 / 127, 0.6 / 127]], rtol=1e-6)
    np.testing.assert_array_equal(stored.codes, np.round(w / [4, 0.6] * 127))
    packed, back = stored_and_back(w, "nf4")
    np.testing.assert_allclose(packed.scale, [[4.0, 0.6]])
    codes = np.abs((w / [4, 0.6])[..., None] - NF4).argmin(-1)
    np.testing.assert_array_equal(packed.codes, codes[::2] | codes[1::2] << 4)
    np.testing.assert_allclose(back, NF4[codes] * [4, 0.6], rtol=1e-6)
    assert (packed.fan_in, packed.fan_out, packed.kind) == ((4,), 1, "nf4")
