"""Poolings with a fixed number of slots: which part of the text each slot is made of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import pool_expand, pooled_queries
from lw_jax.compressors.base import Compressor
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.train.optimiser import groups
from lw_jax.types import Features, Latent
from tests.tiny import by_hand
from tests.tiny.evaluation import draw

WIDTH, TOKENS = 8, 12
DIMS = BridgeDims(source_width=WIDTH, taps=1, latent_dim=6)
EXPAND = pool_expand.Config(slots=6, pools=3, width=16, heads=2, depth=0)
QUERIES = pooled_queries.Config(slots=3, width=16, heads=2, gate=True)


def features(seed: int = 0) -> Features:
    x = np.random.default_rng(seed).normal(size=(2, TOKENS, WIDTH)).astype(np.float32)
    mask = np.arange(TOKENS)[None] < np.asarray([[TOKENS], [2]])
    return Features(x, mask, np.zeros(mask.shape, np.int32))  # type: ignore[arg-type]


def made(config: Compressor) -> tuple[Any, Any]:
    """params -> view -> Latent, compiled once; random parameters, by numpy."""
    apply, params = _made(config)
    return apply, dict(params)


@cache
def _made(config: Compressor) -> tuple[Any, Any]:
    built = config.build(DIMS)
    shapes = jax.eval_shape(built.init, jax.random.key(0), {"source": features()})
    apply = jax.jit(lambda params, view: built.apply({"params": params}, {"source": view}))
    return apply, jax.device_get(draw(shapes, 2, 0.3)["params"])


def apart(one: Latent, other: Latent) -> list[int]:
    """Slots of the first row that differ."""
    far = np.abs(np.asarray(one.slots) - np.asarray(other.slots)).max(axis=-1)[0]
    return np.flatnonzero(far > 1e-5).tolist()


def at(view: Features, row: int, token: int) -> Features:
    x = np.array(view.x)
    x[row, token] += 1.0
    return view.replace(x=x)  # type: ignore[attr-defined,no-any-return]


def test_every_stretch_makes_slots_of_its_own() -> None:
    apply, params = made(EXPAND)
    view = features()
    plain = apply(params, view)
    assert plain.slots.shape == (2, 6, 6)
    assert (EXPAND.fixed_slots, EXPAND.sent_slots) == (6, (6, 6))
    assert np.asarray(
        plain.mask
    ).all()  # also of the text that has fewer tokens than there are pools
    assert np.isfinite(np.asarray(plain.slots)).all()
    assert apart(plain, apply(params, at(view, 0, 5))) == [2, 3]  # the second of three stretches
    assert apart(plain, apply(params, at(view, 1, 9))) == []
    second = params["expand"]["kernel"].copy()
    second[:, 16:] *= -1.0  # makes the second of each
    other = {**params, "expand": {**params["expand"], "kernel": second}}
    assert apart(plain, apply(other, view)) == [1, 3, 5]
    assert groups(params)["expand/kernel"] == "muon"


def test_what_is_trained_on_the_expanded_is_used_pooled() -> None:
    config = replace(EXPAND, use="pooled")
    assert (config.fixed_slots, config.sent_slots) == (3, (3, 3))
    built = config.build(DIMS)
    _, params = made(config)
    run = jax.jit(
        lambda p, view, train: built.apply({"params": p}, {"source": view}, train),
        static_argnums=2,
    )
    used, trained = run(params, features(), False), run(params, features(), True)
    assert (used.slots.shape[1], len(used.owner), trained.slots.shape[1]) == (3, 3, 6)
    assert apart(used, run(params, at(features(), 0, 5), False)) == [1]
    other = {**params, "expand": jax.tree.map(np.negative, params["expand"])}
    assert apart(used, run(other, features(), False)) == []
    assert len(apart(trained, run(other, features(), True))) == 6


def test_queries_read_what_is_real_and_not_each_other() -> None:
    apply, params = made(QUERIES)
    view = features()
    plain = apply(params, view)
    assert np.asarray(plain.mask).all() and plain.owner == (-1,) * 3
    view_of = {"source": view}
    start = jax.jit(lambda key: QUERIES.build(DIMS).init(key, view_of)["params"]["queries"])
    assert np.std(start(jax.random.key(0))) == pytest.approx(0.02, rel=0.4)
    assert (QUERIES.fixed_slots, QUERIES.sent_slots) == (3, (3, 3))
    assert apart(plain, apply(params, at(view, 0, 5))) == [0, 1, 2]
    hidden = apply(params, at(view, 1, 9)).slots
    np.testing.assert_allclose(hidden, plain.slots, atol=1e-6)
    queries = params["queries"].copy()
    queries[1] *= -2.0
    one = {**params, "queries": queries}
    assert apart(plain, apply(one, view)) == [1]
    assert groups(params)["queries"] == "adam"


def test_a_closed_gate_lets_nothing_of_the_text_through() -> None:
    apply, params = made(QUERIES)
    shut = {**params, "gate": {**params["gate"], "bias": np.full((1,), -30.0, np.float32)}}
    assert apart(apply(shut, features(0)), apply(shut, features(1))) == []
    assert apart(apply(params, features(0)), apply(params, features(1))) == [0, 1, 2]


def test_an_open_gate_is_none() -> None:
    apply, params = made(QUERIES)
    wide = {**params, "gate": {**params["gate"], "bias": np.full((1,), 30.0, np.float32)}}
    bare, _ = made(replace(QUERIES, gate=False))
    without = {name: own for name, own in params.items() if not name.startswith("gate")}
    found, wanted = apply(wide, features()), bare(without, features())
    np.testing.assert_allclose(found.slots, wanted.slots, atol=1e-5)
    assert found.span.tolist() == [TOKENS, 2]


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="pools: 4 do not divide the 6 slots"):
        pool_expand.Config(slots=6, pools=4)
    with pytest.raises(UserError, match="slots: expected at least 1"):
        pooled_queries.Config(slots=0)


def applied(config: Compressor, view: Features, train: bool = False) -> tuple[Any, Latent]:
    """Drawn parameters, and what they make of a view."""
    built = config.build(DIMS)
    params = by_hand.drawn(built, {"source": view})
    return params, jax.jit(built.apply, static_argnums=2)(
        {"params": params}, {"source": view}, train
    )


def test_queries_by_hand() -> None:
    """A gate of the slot and of what it reads together; a head that is no content."""
    view = features()
    mask = np.asarray(view.mask).copy()
    mask[:, 0] = False
    view = view.replace(mask=jnp.asarray(mask))  # type: ignore[attr-defined]
    p, found = applied(replace(QUERIES, encoder_layers=1), view)
    x = by_hand.dense(p["enter"], np.asarray(view.x))
    x = x + by_hand.sinusoid(mask.cumsum(axis=1) - 1, 16)
    y = by_hand.rms_norm(p["source_norm"], by_hand.stack(p["encoder"], x, mask))
    z = np.broadcast_to(p["queries"], (2, 3, 16))
    read = by_hand.attention(p["cross"], by_hand.rms_norm(p["query_norm"], z), y, mask)
    gate = by_hand.dense(p["gate"], by_hand.layer_norm(p["gate_norm"], z + read))
    slots = by_hand.rms_norm(p["out_norm"], z + read / (1 + np.exp(-gate)))
    np.testing.assert_allclose(found.slots, by_hand.dense(p["leave"], slots), atol=2e-4)
    assert found.span is not None and found.span.tolist() == [TOKENS - 1, 1]


@pytest.mark.parametrize("use", ["expanded", "pooled"])
def test_pooled_and_expanded_by_hand(use: Any) -> None:
    """Twelve tokens in three stretches of four; six in stretches of two."""
    view = features()
    lengths, mask = np.asarray([12, 6]), np.arange(TOKENS)[None] < np.asarray([[12], [6]])
    view = view.replace(mask=jnp.asarray(mask))  # type: ignore[attr-defined]
    p, found = applied(replace(EXPAND, use=use, depth=1), view)
    x = by_hand.dense(p["enter"], np.asarray(view.x)) + by_hand.sinusoid(np.arange(12)[None], 16)
    z = np.stack([x[0].reshape(3, 4, 16).mean(1), x[1, :6].reshape(3, 2, 16).mean(1)])
    count = 3
    if use == "expanded":
        made = by_hand.dense(p["expand"], by_hand.rms_norm(p["pool_norm"], z))
        z, count = np.repeat(z, 2, axis=1) + made.reshape(2, 6, 16), 6
    z = z + by_hand.sinusoid((np.arange(count) + 0.5)[None] * lengths[:, None] / count, 16)
    z = by_hand.stack(p["mixer"], z, np.ones((2, count), bool))
    wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z))
    np.testing.assert_allclose(found.slots, wanted, atol=5e-4)
    assert found.span is not None and found.span.tolist() == [12, 6]
