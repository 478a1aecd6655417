"""`windows`: whole windows of tokens, several ratios from one bridge."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors.windows import Config, _alike
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.types import Features, Latent
from tests.tiny import by_hand
from tests.tiny.evaluation import draw

DIMS = BridgeDims(6, 1, 6, {"lm": ModelDims(2, 8, 2, 4, 0.02)}, 0)


def config(**options: Any) -> Config:
    base = {"ratios": (1, 2, 4), "width": 16, "heads": 2, "encoder_layers": 1, "depth": 1}
    return Config(**base | options)  # type: ignore[arg-type]


def features(lengths: list[int], skip: int = 1, size: int | None = None) -> Features:
    """Rows of a head and their tokens; as long as the longest one, or of `size`."""
    size = size or max(lengths) + skip
    x = np.random.default_rng(1).normal(size=(len(lengths), size, 6)).astype(np.float32)
    index = np.arange(size)[None]
    mask = (index >= skip) & (index < np.asarray(lengths)[:, None] + skip)
    return Features(x, mask, np.zeros(mask.shape, np.int32))  # type: ignore[arg-type]


@cache
def params_of(options: Config) -> Any:
    """Random parameters, by numpy: nothing is compiled."""
    views = {"source": features([8])}
    return draw(jax.eval_shape(options.build(DIMS).init, jax.random.key(0), views), 2, 0.3)


@cache
def compiled(options: Config) -> Any:
    return jax.jit(options.build(DIMS).apply, static_argnums=2)


def latent(
    options: Config, view: Features, params: Any = None, train: bool = False, seed: int = 0
) -> Latent:
    params = params_of(options) if params is None else params
    rngs = {"noise": jax.random.key(seed)}
    found: Latent = compiled(options)(params, {"source": view}, train, rngs=rngs)
    found.check()
    return found


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_a_text_has_a_slot_for_every_window_of_its_tokens(ratio: int) -> None:
    of_all = config(phase=False)
    found = latent(of_all.at_ratio(ratio), features([9, 4, 1]), params_of(of_all))
    assert np.asarray(found.mask).sum(axis=1).tolist() == [-(-n // ratio) for n in (9, 4, 1)]
    assert found.slots.shape[1] == -(-10 // ratio)  # ten columns: a head, and nine tokens
    begun = jax.eval_shape(lambda: latent(config().at_ratio(ratio), features([9, 4, 1])).slots)
    assert begun.shape[1] == found.slots.shape[1] + (ratio > 1)  # there may be a beginning
    assert found.span is not None
    assert found.span.tolist() == [9, 4, 1]
    assert not np.asarray(found.slots)[~np.asarray(found.mask)].any()


def test_padding_and_head_change_nothing() -> None:
    options = config()
    params, long = params_of(options), features([9, 14])
    short = Features(long.x[:1, 1:10], long.mask[:1, 1:10], long.ids[:1, 1:10])
    of_both, alone = latent(options, long, params), latent(options, short, params)
    chex.assert_trees_all_close(of_both.slots[0, :3], alone.slots[0, :3], atol=1e-5)


def test_one_bridge_has_all_ratios_and_a_larger_one_starts_from_a_smaller() -> None:
    """Windows of two equal tokens are, at the start, what one token is at ratio 1, times root 2."""
    options = config(ratios=(1, 2), encoder_layers=0, depth=0, phase=False)
    params = jax.jit(options.build(DIMS).init)(jax.random.key(0), {"source": features([8])})
    tree = params["params"]
    assert not tree["window_2_kernel"].any()
    one = features([4], skip=0)
    pairs = replace(one, x=np.repeat(one.x, 2, axis=1), mask=np.repeat(one.mask, 2, axis=1))
    at_one, at_two = (
        latent(options.at_ratio(n), view, params).slots for n, view in ((1, one), (2, pairs))
    )
    # the last norm takes the root of two away
    chex.assert_trees_all_close(at_one, at_two, atol=1e-4)
    other = {**params, "params": {**tree, "window_1_kernel": tree["window_1_kernel"] + 0.5}}
    moved = latent(options.at_ratio(2), pairs, other).slots
    assert np.abs(np.asarray(moved) - np.asarray(at_two)).max() > 1e-2


def test_windows_begin_anywhere_in_training_alone() -> None:
    options, view = config(), features([13] * 16, size=14)
    params = params_of(options)
    counts = set(np.asarray(latent(options, view, params, train=True).mask).sum(1).tolist())
    assert counts == {4}
    view = features([12] * 16, size=14)
    counts = set(np.asarray(latent(options, view, params, train=True).mask).sum(1).tolist())
    assert counts == {3, 4}
    assert set(np.asarray(latent(options, view, params).mask).sum(1).tolist()) == {3}


def test_every_token_reaches_its_slot_alone_without_layers() -> None:
    options = config(encoder_layers=0, depth=0, phase=False)
    params, view = params_of(options), features([8], skip=0)
    base = np.asarray(latent(options, view, params).slots)
    for token in range(8):
        x = np.array(view.x)
        x[0, token] += 1.0
        moved = replace(view, x=x)
        changed = np.abs(np.asarray(latent(options, moved, params).slots) - base).max(axis=(0, 2))
        assert (changed > 1e-4).tolist() == [token < 4, token >= 4]


def test_bfloat16_is_close_and_keeps_float32_parameters() -> None:
    params, view = params_of(config()), features([9, 5])
    exact = latent(config(), view, params).slots
    found = latent(config(bfloat16=True), view, params).slots
    assert found.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(found) - np.asarray(exact)).max() < 0.1
    run = compiled(config(bfloat16=True))
    program = str(jax.make_jaxpr(lambda p: run(p, {"source": view}, False))(params))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program)
    assert len(products) > 10 and products.count("bf16") == len(products) - 1  # that to the latent
    leaves = jax.tree.leaves(jax.eval_shape(lambda: params_of(config(bfloat16=True))))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match="ratio: 3 is none of the ratios"):
        config(ratio=3)
    with pytest.raises(UserError, match=r"ratio: 8 has no map of its own; the ratios are 1, 2, 4"):
        config().at_ratio(8)
    with pytest.raises(UserError, match="ratios: expected different ones"):
        config(ratios=(2, 2))


@pytest.mark.parametrize(("ratio", "train"), [(4, True)])
def test_windows_by_hand(ratio: int, train: bool) -> None:
    """Maps of every ratio on top of a smaller one's; in training a window may begin before its
    text, and each row is that of one such beginning."""
    options = config(encoder_layers=1, depth=1, slot_width=12, slot_heads=3).at_ratio(ratio)
    built, view = options.build(DIMS), features([30, 17])
    p = by_hand.drawn(built, {"source": view})
    rngs = {"noise": jax.random.key(0)}
    found = jax.jit(built.apply, static_argnums=2)(
        {"params": p}, {"source": view}, train, rngs=rngs
    )
    assert p["leave"]["kernel"].shape == (12, 6)
    assert p["mixer"]["blocks"]["block"]["self"]["query"]["kernel"].shape == (1, 12, 3, 4)
    two = np.tile(p["window_1_kernel"], (2, 1)) / 2**0.5 + p["window_2_kernel"]
    four = np.tile(two, (2, 1)) / 2**0.5 + p["window_4_kernel"]
    kernel = {1: p["window_1_kernel"], 2: two, 4: four}[ratio]
    for row, length in enumerate((30, 17)):
        fits = []
        for begin in range(ratio if train else 1):
            x = by_hand.dense(p["enter"], np.asarray(view.x)[row : row + 1, 1 : 1 + length])
            x = x + p["window_positions"][(begin + np.arange(length)) % ratio]
            at = np.arange(length)[None]
            x = by_hand.stack(p["encoder"], x, np.ones((1, length), bool), at)
            slots = -(-(begin + length) // ratio)
            laid = np.pad(x, ((0, 0), (begin, slots * ratio - begin - length), (0, 0)))
            z = laid.reshape(1, slots, -1) @ kernel
            at = np.arange(slots)[None] * ratio
            z = by_hand.stack(p["mixer"], z, np.ones((1, slots), bool), at)
            wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z))[0]
            if int(found.mask[row].sum()) == slots and found.mask[row, :slots].all():
                fits.append(np.allclose(found.slots[row, :slots], wanted, atol=1e-3))
        assert sum(fits) == 1, (row, fits)
        assert not np.asarray(found.slots[row])[~np.asarray(found.mask[row])].any()
    assert found.span.tolist() == [30, 17]


def test_a_map_of_windows_begins_as_the_same_of_every_token() -> None:
    found = np.asarray(_alike(4)(jax.random.key(0), (12, 3))).reshape(4, 3, 3)
    for part in found:
        np.testing.assert_array_equal(part, found[0])
    np.testing.assert_allclose(4 * found[0] @ found[0].T, np.eye(3), atol=1e-5)
