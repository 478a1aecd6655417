"""VQ: nearest codes, gradients, dead codes revived, codes that come back as slots."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.bottlenecks import vq
from lw_jax.models.dims import BridgeDims
from tests.tiny.bottlenecks import Part, draw, latent, usage


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_a_slot_becomes_its_nearest_code(distance: Any) -> None:
    part = Part(vq.Config(32, distance), 6)
    book, x = np.asarray(part.params["codebook"]), draw(3, 5, 6, std=2.0)
    assert book.std() == pytest.approx(1.0, abs=0.2)
    mask = np.ones((3, 5), bool)
    mask[0, 4] = False
    if distance == "cosine":
        book, compared = unit(book), unit(x)
        nearest = np.einsum("bmd,kd->bmk", compared, book).argmax(-1)
    else:
        compared = x
        nearest = np.square(x[:, :, None] - book).sum(-1).argmin(-1)
    out, intermediates = part(latent(x, mask))
    np.testing.assert_array_equal(
        np.asarray(intermediates["codes"])[..., 0], np.where(mask, nearest, -1)
    )
    np.testing.assert_allclose(out.slots, book[nearest] * mask[..., None], rtol=1e-5)
    np.testing.assert_allclose(
        intermediates["distances"], np.square(compared[:, :, None] - book).mean(-1), atol=1e-4
    )
    again = part.slots_of(out.replace(slots=np.maximum(np.asarray(intermediates["codes"]), 0)))
    np.testing.assert_array_equal(out.slots, again.slots)
    used = len(np.unique(nearest[mask]))
    said = usage(intermediates)
    assert float(said["usage"]) == pytest.approx(used / 32)
    assert float(said["distinct"]) == pytest.approx(used / mask.sum())
    assert float(said["alive"]) == 1.0


def test_the_gradient_reaches_the_slots_and_passes_the_codebook_by() -> None:
    part = Part(vq.Config(8), 6)
    x, weights = draw(2, 3, 6), draw(2, 3, 6, seed=1)

    def value(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(weights * part(latent(x), params)[0].slots)

    own, through = jax.jit(jax.grad(value, argnums=(0, 1)))(part.params, x)
    np.testing.assert_array_equal(through, weights)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(own))


def step(config: vq.Config, params: Any, x: np.ndarray, mask: Any = None, seed: int = 0) -> Any:
    given = latent(x, np.ones(x.shape[:2], bool) if mask is None else mask)
    return jax.device_get(_step(config, params, given, jax.random.key(seed)))


@partial(jax.jit, static_argnums=0)
def _step(config: vq.Config, params: Any, given: Any, rng: Any) -> Any:
    linen = config.build(BridgeDims(1, 1, given.slots.shape[-1]))
    _, sown = linen.apply({"params": params}, given, True, mutable=["intermediates"])
    return config.after_step(params, sown["intermediates"], rng)


def test_dead_codes_are_put_onto_real_slots_each_taken_once() -> None:
    config = vq.Config(8, revive=3)
    x = draw(2, 2, 4)
    mask = np.array([[True, True], [True, False]])
    # code 0 is near every slot, all others are far away
    book = np.float32([[0.0] * 4, *[[100.0] * 4] * 7])
    params = {"codebook": book, "idle": np.zeros(8, np.float32)}
    for expected in (1.0, 2.0):
        params = step(config, params, x, mask)
        np.testing.assert_array_equal(params["idle"], [0, *[expected] * 7])
        assert (params["codebook"][1:] == 100).all()
    params = step(config, params, x, mask)
    np.testing.assert_array_equal(params["codebook"][0], np.zeros(4))
    fresh = params["codebook"][1:4]  # three real slots for seven dead codes: the others wait
    assert sorted(map(tuple, fresh.tolist())) == sorted(map(tuple, x[mask].tolist()))
    np.testing.assert_array_equal(params["idle"], [0, 0, 0, 0, 3, 3, 3, 3])
    assert (params["codebook"][4:] == 100).all()
    again = step(config, params, x + 1, mask, seed=1)
    assert (again["codebook"][4:] == 100).sum() == 4  # one is left


def test_codes_are_left_alone_where_none_is_revived() -> None:
    config = vq.Config(8, revive=None)
    params = {"codebook": draw(8, 4), "idle": np.full(8, 1e6, np.float32)}
    x = np.broadcast_to(draw(1, 1, 4), (2, 2, 4))
    after = step(config, params, x)
    np.testing.assert_array_equal(after["codebook"], params["codebook"])
    assert sorted(after["idle"].tolist()) == [0, *[1e6 + 1] * 7]
    _, intermediates = Part(config, 4)(latent(x), after)
    assert float(intermediates["alive"]) == pytest.approx(1 / 8)


def test_cosine_codes_are_revived_at_unit_rms() -> None:
    config = vq.Config(2, "cosine", revive=1)
    book = np.float32([[1.0] * 4, [-1.0] * 4])
    params = {"codebook": book, "idle": np.zeros(2, np.float32)}
    x = 5 + draw(1, 2, 4)
    after = step(config, params, x)
    np.testing.assert_allclose(np.square(after["codebook"][1]).mean(), 1.0, rtol=1e-5)
    assert np.abs(unit(x)[0] - after["codebook"][1]).max(-1).min() < 1e-5


def test_codes_may_start_at_unit_length_and_slots_be_normed() -> None:
    part = Part(vq.Config(8, start="unit", input_norm=True), 6)
    book, x = np.asarray(part.params["codebook"]), draw(2, 3, 6, std=5.0)
    np.testing.assert_allclose(np.linalg.norm(book, axis=-1), 1.0, rtol=1e-5)
    _, intermediates = part(latent(x))
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(intermediates["inputs"], normed, rtol=1e-4, atol=1e-5)
    nearest = np.square(normed[:, :, None] - book).sum(-1).argmin(-1)
    np.testing.assert_array_equal(np.asarray(intermediates["codes"])[..., 0], nearest)


def test_quiet_slots_are_compared_but_for_none() -> None:
    """A squared millionth is added to their mean square; a slot of zeros stays finite."""
    part = Part(vq.Config(8, "cosine"), 6)
    x = np.zeros((1, 3, 6), np.float32)
    x[0, 0], x[0, 1] = 1e-6, 1.0
    out, notes = part(latent(x))
    wanted = np.asarray([0.5**0.5, 1.0, 0.0])
    found = np.asarray(notes["inputs"])[0]
    np.testing.assert_allclose(found, wanted[:, None] * np.ones(6), rtol=1e-4)
    assert np.isfinite(out.slots).all()


@pytest.mark.parametrize(("revive", "limit"), [(None, 100), (7, 7)])
def test_a_code_is_alive_until_it_would_be_revived(revive: int | None, limit: int) -> None:
    part = Part(vq.Config(4, revive=revive), 6)
    idle = np.float32([0.0, limit - 1, limit, 3.0 * limit])
    _, notes = part(latent(draw(1, 2, 6)), {**part.params, "idle": idle})
    assert float(notes["alive"]) == 0.5
