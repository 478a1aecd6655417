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

WIDTH, TOKENS = 8, 24
DIMS = BridgeDims(source_width=WIDTH, taps=1, latent_dim=6)


def config(slots: int = 12, **options: object) -> perceiver.Config:
    return perceiver.Config(slots=slots, width=16, heads=2, depth=1, **options)  # type: ignore[arg-type]


def features(lengths: list[int]) -> Features:
    x = jax.random.normal(jax.random.key(1), (len(lengths), TOKENS, WIDTH))
    mask = jnp.arange(TOKENS)[None] < jnp.asarray(lengths)[:, None]
    return Features(x, mask, jnp.zeros(mask.shape, jnp.int32))


@cache
def compiled(options: perceiver.Config) -> Any:
    return jax.jit(options.build(DIMS).apply, static_argnums=2)


def latent(options: perceiver.Config, view: Features, train: bool = False, seed: int = 0) -> Latent:
    rngs = {"noise": jax.random.key(seed)}
    found: Latent = compiled(options)(fresh(), {"source": view}, train, rngs=rngs)
    return found


@cache
def fresh() -> PyTree:
    return jax.jit(config().build(DIMS).init)(jax.random.key(0), {"source": features([TOKENS])})


def test_slots_follow_the_length() -> None:
    found = latent(config(ratios=(4.0, 2.0)), features([24, 9, 1]))
    assert found.mask.sum(axis=1).tolist() == [6, 3, 1]
    chex.assert_trees_all_equal(found.slots[~np.asarray(found.mask)], jnp.zeros((8, 6)))
    wider = latent(config(ratios=(4.0, 2.0), ratio=2.0), features([24, 9, 1]))
    assert wider.mask.sum(axis=1).tolist() == [12, 5, 1]


def test_unused_slots_change_nothing() -> None:
    view = features([24, 9])
    many = latent(config(ratios=(4.0,)), view)
    params = fresh()["params"]
    cut = dict(params) | {"queries": params["queries"][:6]}
    few = compiled(config(6))({"params": cut}, {"source": view})
    chex.assert_trees_all_close(many.slots[0, :6], few.slots[0], atol=1e-5)


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
    x = jax.random.normal(jax.random.key(1), (1, 48, WIDTH))
    options = config(slots=40, ratios=(1.3,))
    module = options.build(DIMS)
    mask = jnp.arange(48)[None] < 39
    filled = Features(x, mask, jnp.zeros(mask.shape, jnp.int32))
    full = Features(*(a[:, :39] for a in (filled.x, filled.mask, filled.ids)))
    params = jax.jit(module.init)(jax.random.key(0), {"source": filled})
    apply = jax.jit(module.apply)
    found = [apply(params, {"source": view}) for view in (full, filled)]
    count = int(found[0].mask.sum())
    assert count == int(found[1].mask.sum()) == 30
    chex.assert_trees_all_close(found[0].slots[:, :count], found[1].slots[:, :count], atol=1e-5)


def test_training_draws_every_ratio() -> None:
    options, view = config(ratios=(2.0, 4.0, 8.0)), features([24] * 8)
    counts = {int(n) for seed in range(4) for n in latent(options, view, True, seed).mask.sum(1)}
    assert counts == {12, 6, 3}


def test_one_ratio_of_several_is_trained() -> None:
    one = config(ratios=(2.0, 4.0, 8.0)).at_ratio(8.0)
    found = latent(one, features([24] * 8), train=True)
    assert found.mask.sum(axis=1).tolist() == [3] * 8
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
