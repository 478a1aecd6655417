"""Any ratio: a text takes as many slots as its length asks for, and unused slots do not exist."""

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import perceiver
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Features, Latent, PyTree
from tests.tiny import by_hand
from tests.tiny.evaluation import draw

WIDTH, TOKENS = 8, 24
DIMS = BridgeDims(source_width=WIDTH, taps=1, latent_dim=6)


def config(slots: int = 12, **options: object) -> perceiver.Config:
    return perceiver.Config(slots=slots, width=16, heads=2, depth=1, **options)  # type: ignore[arg-type]


def features(lengths: list[int]) -> Features:
    x = np.random.default_rng(1).normal(size=(len(lengths), TOKENS, WIDTH)).astype(np.float32)
    mask = np.arange(TOKENS)[None] < np.asarray(lengths)[:, None]
    return Features(x, mask, np.zeros(mask.shape, np.int32))  # type: ignore[arg-type]


@cache
def compiled(options: perceiver.Config) -> Any:
    return jax.jit(options.build(DIMS).apply, static_argnums=2)


def latent(options: perceiver.Config, view: Features, train: bool = False, seed: int = 0) -> Latent:
    rngs = {"noise": jax.random.key(seed)}
    found: Latent = compiled(options)(fresh(), {"source": view}, train, rngs=rngs)
    return found


@cache
def fresh() -> PyTree:
    return drawn(config().build(DIMS), features([TOKENS]))


def drawn(module: Any, view: Features) -> PyTree:
    """Random parameters, by numpy: nothing is compiled."""
    return draw(jax.eval_shape(module.init, jax.random.key(0), {"source": view}), 2, 0.3)


def test_slots_follow_the_length() -> None:
    found = latent(config(ratios=(4.0, 2.0)), features([24, 9, 1]))
    assert np.asarray(found.mask).sum(axis=1).tolist() == [6, 3, 1]
    assert np.asarray(found.slots)[~np.asarray(found.mask)].shape == (8, 6)
    assert not np.asarray(found.slots)[~np.asarray(found.mask)].any()
    wider = latent(config(ratios=(4.0, 2.0), ratio=2.0), features([24, 9, 1]))
    assert np.asarray(wider.mask).sum(axis=1).tolist() == [12, 5, 1]


def test_unused_slots_change_nothing() -> None:
    view = features([24, 9, 1])
    many = latent(config(ratios=(4.0, 2.0)), view)
    params = fresh()["params"]
    cut = dict(params) | {"queries": np.asarray(params["queries"])[:6]}
    few = compiled(config(6))({"params": cut}, {"source": view})
    chex.assert_trees_all_close(np.asarray(many.slots)[0, :6], np.asarray(few.slots)[0], atol=1e-5)


def test_a_batch_has_no_more_slots_than_its_longest_row_can_take() -> None:
    def shape(train: bool = False, **options: Any) -> tuple[int, ...]:
        view = features([24, 9])
        made = jax.eval_shape(lambda: latent(config(**options), view, train).slots)
        return made.shape

    assert shape(ratios=(2.0, 5.0)) == (2, 12, 6)
    assert shape(ratios=(2.0, 5.0), ratio=5.0) == (2, 5, 6)
    assert shape(ratios=(5.0, 4.0), train=True) == (2, 6, 6)
    assert shape(ratios=(1.0,)) == (2, 12, 6)


def test_a_full_row_has_the_slots_that_it_has_with_filling() -> None:
    """Also where the quotient, 39 / 1.3, is rounded above 30 on one path and not on the other."""
    x = np.random.default_rng(1).normal(size=(1, 48, WIDTH)).astype(np.float32)
    options = config(slots=40, ratios=(1.3,))
    module = options.build(DIMS)
    mask = np.arange(48)[None] < 39
    filled = Features(x, mask, np.zeros(mask.shape, np.int32))  # type: ignore[arg-type]
    full = Features(*(a[:, :39] for a in (filled.x, filled.mask, filled.ids)))
    params = drawn(module, filled)
    apply = jax.jit(module.apply)
    found = [jax.device_get(apply(params, {"source": view})) for view in (full, filled)]
    count = int(found[0].mask.sum())
    assert count == int(found[1].mask.sum()) == 30
    chex.assert_trees_all_close(found[0].slots[:, :count], found[1].slots[:, :count], atol=1e-5)


def test_training_draws_every_ratio() -> None:
    options, view = config(ratios=(2.0, 4.0, 8.0)), features([24] * 8)
    masks = [np.asarray(latent(options, view, True, seed).mask) for seed in range(4)]
    counts = {int(n) for mask in masks for n in mask.sum(axis=1)}
    assert counts == {12, 6, 3}


def test_one_ratio_of_several_is_trained() -> None:
    one = config(ratios=(2.0, 4.0, 8.0)).at_ratio(8.0)
    found = latent(one, features([24] * 8), train=True)
    assert np.asarray(found.mask).sum(axis=1).tolist() == [3] * 8
    assert found.slots.shape[1] == 3


def test_a_ratio_needs_ratios() -> None:
    with pytest.raises(UserError, match="ratio: this bridge"):
        config(ratio=4.0)
    with pytest.raises(UserError, match=r"ratios\.0: expected at least 1; got 0\.5"):
        config(ratios=(0.5,))


def test_heads_fit_its_own_width_or_the_latents() -> None:
    perceiver.Config(slots=2, width=16, heads=8).check(6)
    perceiver.Config(slots=2, width=None, heads=6).check(6)
    with pytest.raises(UserError, match="heads: 8 are more than the width 6"):
        perceiver.Config(slots=2, width=None, heads=8).check(6)


@pytest.mark.parametrize(("rotary", "anchored"), [(True, True), (False, False)])
def test_slots_by_hand(rotary: bool, anchored: bool) -> None:
    """Two slots of a text of eight tokens, each from the mean of its half; one of four tokens. The
    first token of a row is no content."""
    options = config(ratios=(4.0,), rotary=rotary, anchored=anchored, encoder_layers=1)
    built, lengths = options.build(DIMS), np.asarray([8, 4])
    mask = (np.arange(9) > 0)[None] & (np.arange(9)[None] <= lengths[:, None])
    x = np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32)
    view = Features(jnp.asarray(x), jnp.asarray(mask), jnp.zeros(mask.shape, jnp.int32))
    p = by_hand.drawn(built, {"source": view})
    found = jax.jit(built.apply)({"params": p}, {"source": view})
    index = mask.cumsum(1) - 1
    x = by_hand.dense(p["enter"], x) + by_hand.sinusoid(index, 16)
    x = by_hand.stack(p["encoder"], x, mask, index if rotary else None)
    used = np.asarray([[True, True, False], [True, False, False]])
    z = np.broadcast_to(p["queries"][:3], (2, 3, 16)).copy()
    if anchored:
        z[0, :2] += x[0, 1:].reshape(2, 4, 16).mean(1)
        z[1, 0] += x[1, 1:5].mean(0)
    middles = np.asarray([[2.0, 6.0, 10.0], [2.0, 6.0, 10.0]])
    z = z + by_hand.sinusoid(middles, 16)
    y = by_hand.rms_norm(p["source_norm"], x)
    at = (middles, index) if rotary else (None, None)
    z = by_hand.stack(p["resampler"], z, used, at[0], y, mask, at[1])
    wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z)) * used[..., None]
    np.testing.assert_allclose(found.slots, wanted, atol=1e-3)
    assert found.mask.tolist() == used.tolist()
    assert found.span is not None and found.span.tolist() == [8, 4]


def test_slots_begin_quiet() -> None:
    """Their learned vectors are drawn with a deviation of 0.02."""
    built = config(slots=64).build(DIMS)
    view = Features(jnp.ones((1, 4, WIDTH)), jnp.ones((1, 4), bool), jnp.zeros((1, 4), jnp.int32))
    queries = jax.jit(lambda key: built.init(key, {"source": view})["params"]["queries"])
    assert np.std(queries(jax.random.key(0))) == pytest.approx(0.02, rel=0.1)
