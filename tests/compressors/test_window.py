"""Windows: what a slot sees, whatever pools it, and that filling is not seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import window
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.train.optimiser import groups
from lw_jax.types import Features, Latent
from tests.tiny import by_hand
from tests.tiny.evaluation import draw

WIDTH, TOKENS, SIZE = 8, 20, 4
DIMS = BridgeDims(source_width=WIDTH, taps=1, latent_dim=6)
MODES = ("mean", "concat", "conv", "hierarchical")


def features(lengths: list[int], tokens: int = TOKENS, skip: int = 0) -> Features:
    """Rows of the same tokens, whatever stands before (`skip`, no content) and after them."""
    x = np.random.default_rng(0).normal(size=(len(lengths), TOKENS, WIDTH)).astype(np.float32)
    laid = np.full((len(lengths), tokens + skip, WIDTH), 9.0, np.float32)
    mask = np.zeros(laid.shape[:2], bool)
    for row, length in enumerate(lengths):
        laid[row, skip : skip + length] = x[row, :length]
        mask[row, skip : skip + length] = True
    return Features(jnp.asarray(laid), jnp.asarray(mask), jnp.zeros(mask.shape, jnp.int32))


@cache
def module(mode: Any, depth: int = 0) -> tuple[Any, Any]:
    """The compiled module of a mode, and its parameters."""
    made = window.Config(SIZE, mode, width=16, heads=2, depth=depth).build(DIMS)
    view = {"source": features([TOKENS])}
    return jax.jit(made.apply), draw(jax.eval_shape(made.init, jax.random.key(0), view), 2, 0.3)


def latent(mode: str, view: Features) -> Latent:
    apply, params = module(mode)
    return jax.device_get(apply(params, {"source": view}))


@pytest.mark.parametrize("mode", MODES)
def test_slots_follow_the_length_and_filling_is_not_seen(mode: str) -> None:
    plain = latent(mode, features([20, 9]))
    assert plain.mask.sum(axis=1).tolist() == [5, 3]
    assert plain.span is not None
    assert plain.span.tolist() == [20.0, 9.0]
    assert not plain.slots[~plain.mask].any()
    more = latent(mode, features([20, 9], tokens=26, skip=2))
    chex.assert_trees_all_close(more.slots[:, :5], plain.slots, atol=1e-5)
    assert more.mask.sum(axis=1).tolist() == [5, 3]


@pytest.mark.parametrize(
    ("mode", "moved"),
    [("mean", [1]), ("concat", [1]), ("hierarchical", [1]), ("conv", [1, 2])],
)
def test_a_token_moves_the_windows_that_see_it(mode: str, moved: list[int]) -> None:
    """`conv` sees twice its window, half of it in the neighbours'."""
    view = features([TOKENS, 9])
    other = view.replace(x=view.x.at[0, 6].add(1.0))  # type: ignore[attr-defined]
    apart = np.abs(latent(mode, view).slots - latent(mode, other).slots).max(axis=-1)[0]
    assert np.flatnonzero(apart > 1e-4).tolist() == moved


def test_the_mean_of_a_window_is_that_of_its_real_tokens() -> None:
    x = jnp.asarray([[[2.0], [4.0], [7.0], [0.0], [0.0], [0.0]]])
    real = jnp.asarray([[True, True, True, False, False, False]])
    z, mask = window.merged(x, real, 2, "mean", 2, 4, 0.0, False)
    assert z.ravel().tolist() == [3.0, 7.0, 0.0]
    assert mask.tolist() == [[True, True, False]]


def test_each_window_reads_its_stretch_of_the_other_view() -> None:
    """Of 20 tokens in windows of 4, and 10 bytes, a window has 2; what fills a row is none."""
    dims = BridgeDims(WIDTH, 1, 6)
    options = {"mode": "mean", "width": 16, "heads": 2, "depth": 0, "views": ("tokens", "bytes")}
    built = window.Config(SIZE, **options).build(dims)  # type: ignore[arg-type]
    tokens, one = features([20, 9]), features([10, 7])
    views = {"tokens": tokens, "bytes": one}
    params = draw(jax.eval_shape(built.init, jax.random.key(0), views), 2, 0.3)
    run = jax.jit(lambda other: built.apply(params, {"tokens": tokens, "bytes": other}).slots)

    def moved(row: int, byte: int) -> list[int]:
        x = np.array(one.x)
        x[row, byte] += 1.0
        other = one.replace(x=x)  # type: ignore[attr-defined]
        apart = np.abs(np.asarray(run(one)) - np.asarray(run(other))).max(axis=-1)
        assert not apart[1 - row].any()
        return np.flatnonzero(apart[row] > 1e-4).tolist()

    assert [moved(0, byte) for byte in range(10)] == [[n // 2] for n in range(10)]
    assert [moved(1, byte) for byte in (0, 6, 7, 19)] == [[0], [2], [], []]  # 7 in three windows


def test_parameters_of_bridges_that_were_trained() -> None:
    own = {"enter", "leave", "out_norm"}
    mixer = {"mixer"}
    assert set(module("mean", 1)[1]["params"]) == own | mixer
    assert set(module("concat")[1]["params"]) == own | {"concat", "mlp", "mlp_norm"}
    assert set(module("hierarchical")[1]["params"]) == own | {"level_0", "level_1"}
    conv = module("conv")[1]["params"]
    assert conv["conv"]["kernel"].shape == (2 * SIZE, 16, 16)
    assert groups(conv)["conv/kernel"] == "muon"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size": 0}, "size: expected at least 1"),
        ({"size": 6, "mode": "hierarchical"}, "use a power of two; got 6"),
        ({"size": 4, "mode": "conv", "kernel": 3}, "kernel: expected at least the size 4"),
        ({"size": 4, "kernel": 8}, "mode 'concat' has none"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        window.Config(**options)


def merged(p: Any, x: np.ndarray, real: np.ndarray, size: int, mode: str, kernel: int) -> Any:
    """Windows of tokens by hand."""
    rows, tokens, width = x.shape
    windows = x.reshape(rows, tokens // size, size, width)
    count = real.reshape(rows, -1, size).sum(2)
    z = windows.sum(2) / np.maximum(1, count)[..., None]
    if mode == "concat":
        z = z + by_hand.dense(p["concat"], windows.reshape(rows, -1, size * width))
    if mode == "conv":
        before = (kernel - size) // 2
        wide = np.pad(x, ((0, 0), (before, kernel), (0, 0)))
        each = [wide[:, n * size : n * size + kernel] for n in range(tokens // size)]
        read = np.einsum("bnkw,kwo->bno", np.stack(each, 1), p["conv"]["kernel"])
        z = z + read + p["conv"]["bias"]
    if mode != "mean":
        z = z + by_hand.mlp(p["mlp"], by_hand.rms_norm(p["mlp_norm"], z))
    return z, count > 0


@pytest.mark.parametrize(
    ("mode", "kernel"),
    [("mean", None), ("concat", None), ("conv", None), ("conv", 7), ("hierarchical", None)],
)
def test_windows_by_hand(mode: Any, kernel: int | None) -> None:
    """Rotary, with a layer over the slots; the text is no multiple of its windows."""
    rotary = mode == "concat"
    config = window.Config(SIZE, mode, kernel, width=16, heads=2, depth=1, rotary=rotary)
    built, view = config.build(DIMS), features([18, 9], tokens=18)
    p = by_hand.drawn(built, {"source": view})
    found = jax.jit(built.apply)({"params": p}, {"source": view})
    real = np.pad(np.asarray(view.mask), ((0, 0), (0, 2)))
    x = by_hand.dense(p["enter"], np.asarray(view.x)) + by_hand.sinusoid(np.arange(18)[None], 16)
    x = np.pad(x, ((0, 0), (0, 2), (0, 0))) * real[..., None]
    if mode == "hierarchical":
        z, mask = x, real
        for level in range(2):
            z, mask = merged(p[f"level_{level}"], z, mask, 2, "concat", 2)
            z = z * mask[..., None]
    else:
        z, mask = merged(p, x, real, SIZE, mode, kernel or 2 * SIZE)
    starts = np.arange(5) * SIZE
    at = np.broadcast_to(starts + 1.5, mask.shape) if rotary else None
    z = by_hand.stack(p["mixer"], z + by_hand.sinusoid(starts, 16)[None], mask, at)
    wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z)) * mask[..., None]
    np.testing.assert_allclose(found.slots, wanted, atol=1e-3)
    assert found.mask.tolist() == mask.tolist()


def test_a_window_and_its_stretch_of_another_view_by_hand() -> None:
    """Windows of four tokens, and the two or three bytes that stand beside each."""
    options = {"mode": "mean", "width": 16, "heads": 2, "depth": 0, "views": ("tokens", "bytes")}
    config = window.Config(SIZE, encoder_layers=1, **options)  # type: ignore[arg-type]
    built, views = config.build(DIMS), {"tokens": features([8, 12]), "bytes": features([4, 9])}
    p = by_hand.drawn(built, views)
    found = jax.jit(built.apply)({"params": p}, views)
    at, read = np.arange(TOKENS)[None], {}
    for name, end in (("tokens", ""), ("bytes", "_bytes")):
        x = by_hand.dense(p[f"enter{end}"], np.asarray(views[name].x)) + by_hand.sinusoid(at, 16)
        read[name] = by_hand.stack(p[f"encoder{end}"], x, np.asarray(views[name].mask))
    for row, (count, each) in enumerate(((2, 2), (3, 3))):
        z = read["tokens"][row, : 4 * count].reshape(count, 4, 16).mean(1)
        beside = read["bytes"][row, : each * count].reshape(count, each, 16).mean(1)
        z = z + by_hand.dense(p["read_bytes"], beside) + by_hand.sinusoid(4 * np.arange(count), 16)
        wanted = by_hand.dense(p["leave"], by_hand.rms_norm(p["out_norm"], z))
        np.testing.assert_allclose(found.slots[row, :count], wanted, atol=1e-3)
        assert not np.asarray(found.slots)[row, count:].any()


def test_windows_are_of_the_real_tokens_in_their_order() -> None:
    """Also of many, where a sort that is not stable would mix them."""
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(2, 60, WIDTH)).astype(np.float32), rng.random((2, 60)) < 0.5
    mask[:, :40] |= rng.random((2, 40)) < 0.5
    found = latent(
        "mean", Features(jnp.asarray(x), jnp.asarray(mask), jnp.zeros((2, 60), jnp.int32))
    )
    for row in range(2):
        count = int(mask[row].sum())
        alone = Features(
            jnp.asarray(x[row][mask[row]])[None],
            jnp.ones((1, count), bool),
            jnp.zeros((1, count), jnp.int32),
        )
        wanted = latent("mean", alone)
        slots = int(wanted.mask.sum())
        np.testing.assert_allclose(found.slots[row, :slots], wanted.slots[0], atol=1e-4)
        assert found.mask[row].sum() == slots == -(-count // SIZE)
