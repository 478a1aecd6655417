"""What the decoder's run promises: masks, edits, taps, early exit, memory."""

from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.models import decoder as decoder_of
from lw_jax.models.cache import as_prefix, new_cache
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.params import init
from lw_jax.types import KV, Blocks, Edits, Lora
from tests.models import naive
from tests.tiny.arch import decoder

ARCH = decoder("qwen2", 40, 16, 3, 4, 2, 4, 24, theta=100.0, qkv_bias=True, init_std=0.3)
WINDOW = replace(ARCH, window=4)
ROWS, TOKENS, SLOTS, COLUMNS = 3, 9, 3, 4
LENGTHS = np.array([9, 6, 8], np.int32)
STARTS = np.array([2, 1, 3], np.int32)

empty_cache = jax.jit(new_cache, static_argnums=range(5))
jit_run = jax.jit(run, static_argnums=0, static_argnames=("start", "stop", "taps", "keep"))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(init, static_argnums=0)(ARCH, jax.random.key(0))
    bias = {f"{n}_bias": 0.3 * normal(5, *made["layers"][f"{n}_bias"].shape) for n in "qkv"}
    return {**made, "layers": {**made["layers"], **bias}}


@pytest.fixture(scope="module")
def h(params):
    ids = np.random.default_rng(1).integers(0, 40, (ROWS, TOKENS))
    return np.asarray(jax.jit(embed_tokens)(params, ids)) * 3


def whole_positions(rows: int = ROWS, tokens: int = TOKENS) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens)[None], (rows, tokens))


def prefix() -> KV:
    return KV(
        k=normal(2, 3, ROWS, COLUMNS, 2, 4),
        v=normal(3, 3, ROWS, COLUMNS, 2, 4),
        mask=np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]], bool),
        positions=STARTS[:, None] + 0.75 * np.arange(COLUMNS)[None],
    )


def lora() -> Lora:
    fans = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16)}
    a = {n: normal(i, 2, ins, 2) for i, (n, (ins, _)) in enumerate(fans.items())}
    b = {n: 0.3 * normal(9 + i, 2, 2, out) for i, (n, (_, out)) in enumerate(fans.items())}
    return Lora(a, b, 0.7, layers=(0, 2))


def apply_block(own, x, given):
    return x + jnp.tanh(x @ own["w"]) + given


def blocks() -> Blocks:
    return Blocks(
        {"w": 0.3 * normal(20, 2, 16, 16)}, apply_block, (1, 2), 0.3 * normal(23, 1, 1, 16)
    )


def slots() -> np.ndarray:
    at = STARTS[:, None] + np.arange(SLOTS)[None]
    return np.where(np.arange(SLOTS)[None] < np.array([[2], [3], [3]]), at, -1)


def deltas() -> Edits:
    shape = (3, ROWS, SLOTS, 2, 4)
    return Edits(k_delta=normal(21, *shape), v_delta=normal(22, *shape))


GAIN = 1 + 0.5 * np.arange(ROWS * TOKENS, dtype=np.float32).reshape(ROWS, TOKENS) / 27
GIVEN = {
    "nothing": LayerInputs(),
    "prefix": LayerInputs(kv=prefix(), message_start=STARTS),
    "lora": LayerInputs(edits=Edits(lora=lora())),
    "blocks": LayerInputs(edits=Edits(blocks=blocks())),
    "deltas": LayerInputs(edits=deltas(), slot_index=slots()),
    "all": LayerInputs(
        prefix(), STARTS, replace(deltas(), lora=lora(), blocks=blocks()), slots(), GAIN
    ),
}


def real(x: jax.Array) -> np.ndarray:
    """The entries [..., B, T, D] of real tokens, as [..., n, D]."""
    return np.asarray(x)[..., np.arange(TOKENS)[None] < LENGTHS[:, None], :]


@pytest.mark.parametrize(
    ("arch", "given"),
    [
        (ARCH, "nothing"),
        (WINDOW, "all"),  # of which each of the others is a part
        *(pytest.param(WINDOW, n, marks=pytest.mark.slow) for n in GIVEN if n != "all"),
        pytest.param(ARCH, "all", marks=pytest.mark.slow),
    ],
)
def test_equals_the_naive_decoder(arch, given, params, h):
    positions = whole_positions() + 0.5 * (np.arange(TOKENS)[None] > 4)
    taps = (0, 1, 2, 3)
    done = jit_run(
        arch, params, h, positions=positions, lengths=LENGTHS, taps=taps, delivery=GIVEN[given]
    )
    want = naive.stream(arch, params, h, positions, LENGTHS, GIVEN[given])
    np.testing.assert_allclose(real(done.taps), real(want), atol=2e-4)
    np.testing.assert_array_equal(done.h, np.asarray(done.taps)[3])
    if given != "nothing":
        plain = naive.stream(arch, params, h, positions, LENGTHS, LayerInputs())
        assert np.abs(real(want)[3] - real(plain)[3]).max() > 0.1


def test_cached_run_equals_one_run(params, h):
    """Prompts of different lengths, then the rest token by token at each row's own next index."""
    inputs, prompts = GIVEN["all"], np.array([6, 6, 7], np.int32)
    whole = jit_run(
        WINDOW, params, h, positions=whole_positions(), lengths=LENGTHS, delivery=inputs
    ).h
    cache = empty_cache(WINDOW, 3, ROWS, TOKENS, h.dtype)
    part = jit_run(
        WINDOW,
        params,
        h,
        positions=whole_positions(),
        lengths=prompts,
        delivery=inputs,
        cache=cache,
    )
    chex.assert_trees_all_equal(part.cache.lengths, prompts)
    begun = jit_run(
        WINDOW,
        params,
        h,
        positions=whole_positions(),
        lengths=prompts,
        delivery=inputs,
        keep=TOKENS,
    )
    chex.assert_trees_all_close(begun.cache, part.cache, atol=1e-5)
    live = np.arange(TOKENS)[None] < prompts[:, None]
    np.testing.assert_allclose(np.asarray(begun.h)[live], np.asarray(part.h)[live], atol=1e-5)
    for step in range(3):
        at = np.minimum(prompts + step, LENGTHS - 1)[:, None]
        live = prompts + step < LENGTHS
        gain = np.take_along_axis(GAIN, at, axis=1)
        part = jit_run(
            WINDOW,
            params,
            np.take_along_axis(np.asarray(h), at[..., None], axis=1),
            positions=at,
            lengths=live.astype(np.int32),
            delivery=replace(inputs, gain=gain),
            cache=part.cache,
        )
        want = np.take_along_axis(np.asarray(whole), at[..., None], axis=1)
        np.testing.assert_allclose(np.asarray(part.h)[live], want[live], atol=2e-5)
    chex.assert_trees_all_equal(part.cache.lengths, LENGTHS)


def test_cudnn_is_given_lengths_that_are_rounded_once(params, h, monkeypatch):
    """What it needs in training; taps, stream and gains are those of the tokens alone."""
    xla, sizes = jax.nn.dot_product_attention, []

    def stands_for_cudnn(q, k, v, implementation, **how):
        sizes.append((implementation, q.shape[1]))
        return xla(q, k, v, implementation="xla", **how)

    asked = {"positions": whole_positions(), "lengths": LENGTHS, "delivery": GIVEN["all"]}
    want = jit_run(ARCH, params, h, taps=(1, 3), **asked)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stands_for_cudnn)
    found = jax.jit(partial(run, ARCH, taps=(1, 3), impl="cudnn"))(params, h, **asked)
    assert set(sizes) == {("cudnn", 16)}
    for a, b in ((found.h, want.h), (found.taps, want.taps)):
        assert a.shape == b.shape
        np.testing.assert_allclose(real(a), real(b), atol=1e-5)


@pytest.mark.parametrize("also", [{}, {"kv": prefix(), "message_start": STARTS}])
def test_cudnn_is_given_a_mask_whose_queries_all_see_a_key(params, h, monkeypatch, also) -> None:
    """Also those that round the number of tokens: a softmax over nothing has no gradient."""
    allowed = np.tri(TOKENS, dtype=bool)[None].repeat(ROWS, axis=0)
    given = LayerInputs(allowed=jnp.asarray(allowed), **also)
    xla, masks = jax.nn.dot_product_attention, []

    def stands_for_cudnn(q, k, v, mask, implementation):
        jax.debug.callback(lambda mask: masks.append(np.asarray(mask)), mask)
        return xla(q, k, v, mask=mask, implementation="xla")

    asked = {"positions": whole_positions(), "lengths": LENGTHS, "delivery": given}
    want = jit_run(ARCH, params, h, **asked).h
    monkeypatch.setattr(jax.nn, "dot_product_attention", stands_for_cudnn)
    found = jax.jit(partial(run, ARCH, impl="cudnn"))(params, h, **asked).h
    jax.effects_barrier()
    assert {mask.shape[2] for mask in masks} == {16}
    assert all(mask.any(axis=-1).all() for mask in masks)
    np.testing.assert_allclose(real(found), real(want), atol=1e-5)


def test_a_given_mask_alone_says_who_sees_whom(params, h) -> None:
    """Even and odd tokens are apart, and each sees its kind before and after it."""
    at = np.arange(TOKENS)
    apart = np.broadcast_to((at[:, None] - at[None]) % 2 == 0, (ROWS, TOKENS, TOKENS))

    def of(changed: int | None) -> np.ndarray:
        given = h if changed is None else h + (at == changed)[None, :, None].astype(np.float32)
        asked = {"positions": whole_positions(), "lengths": np.full(ROWS, TOKENS, np.int32)}
        return np.asarray(
            jit_run(ARCH, params, given, delivery=LayerInputs(allowed=apart), **asked).h
        )

    usual = of(None)
    for changed in (1, TOKENS - 1):
        moved = np.abs(of(changed) - usual).max(axis=(0, 2))
        np.testing.assert_array_equal(moved > 1e-3, (at - changed) % 2 == 0)


def test_prefix_of_real_tokens_equals_the_tokens(params, h):
    """Keys before RoPE and values of prefilled tokens, given as a prefix, replace the tokens."""
    first, rest = h[:, :4], h[:, 4:]
    at = whole_positions()
    four = np.full(ROWS, 4, np.int32)
    cache = empty_cache(ARCH, 3, ROWS, 4, h.dtype)
    seen = jit_run(ARCH, params, first, positions=at[:, :4], lengths=four, cache=cache).cache
    done = jit_run(
        ARCH,
        params,
        rest,
        positions=at[:, 4:],
        lengths=LENGTHS - 4,
        delivery=LayerInputs(kv=jax.jit(as_prefix, static_argnums=0)(ARCH, seen)),
    )
    whole = jit_run(ARCH, params, h, positions=at, lengths=LENGTHS)
    np.testing.assert_allclose(real(whole.h)[4:9], np.asarray(done.h)[0], atol=1e-4)
    np.testing.assert_allclose(np.asarray(whole.h)[2, 4:8], np.asarray(done.h)[2, :4], atol=1e-4)


def test_padding_changes_nothing(params, h):
    """Neither what stands in the padding nor how much of it there is."""
    noise = np.where(np.arange(TOKENS)[None, :, None] < LENGTHS[:, None, None], h, 1e3)
    wide = np.pad(noise, [(0, 0), (0, 3), (0, 0)], constant_values=-7.0)
    given = GIVEN["prefix"]
    tight = jit_run(WINDOW, params, h, positions=whole_positions(), lengths=LENGTHS, delivery=given)
    loose = jit_run(
        WINDOW,
        params,
        wide,
        positions=whole_positions(tokens=TOKENS + 3),
        lengths=LENGTHS,
        delivery=given,
    )
    np.testing.assert_allclose(real(tight.h), real(np.asarray(loose.h)[:, :TOKENS]), atol=1e-6)


def test_no_gradient_comes_from_the_future(params, h):
    """State 4 of row 0 depends on tokens 0 to 4 of row 0, and on nothing else."""

    @jax.jit
    @jax.grad
    def sensitivity(h):
        out = run(ARCH, params, h, positions=whole_positions(), lengths=LENGTHS)
        return jnp.sum(jnp.sin(out.h[0, 4]))

    found = np.abs(np.asarray(sensitivity(h))).max(-1)
    assert (found[0, :5] > 0).all()
    assert (found[0, 5:] == 0).all()
    assert (found[1:] == 0).all()


def test_window_hides_what_lies_behind_it(params, h):
    @jax.jit
    @jax.grad
    def sensitivity(h):
        out = run(WINDOW, params, h, positions=whole_positions(), lengths=LENGTHS, stop=1)
        return jnp.sum(out.h[0, 7])

    found = np.abs(np.asarray(sensitivity(h))[0]).max(-1)
    assert (found > 0).tolist() == [4 <= i <= 7 for i in range(TOKENS)]


def test_tokens_before_the_message_do_not_see_it(params, h):
    kv = prefix()

    def states(k, v):
        given = LayerInputs(kv=replace(kv, k=k, v=v), message_start=STARTS)
        out = run(ARCH, params, h, positions=whole_positions(), lengths=LENGTHS, delivery=given)
        return jnp.sum(out.h[1], axis=-1)

    by_v = np.abs(jax.jit(jax.jacrev(states, argnums=1))(kv.k, kv.v)).sum(
        axis=(1, 4, 5)
    )  # [T, B, C]
    assert (by_v[:1] == 0).all()
    assert (by_v[1:6, 1, :2] > 0).all()
    assert (by_v[1:6, 1, 2:] == 0).all()


def test_early_exit_never_touches_the_layers_beyond(params, h):
    def spoil(x):
        return np.concatenate([x[:2], np.full_like(x[2:], np.nan)])

    layers = jax.device_get(params["layers"])
    spoilt = {**params, "layers": jax.tree.map(spoil, layers)}
    cut = {"embed": params["embed"], "layers": jax.tree.map(lambda x: x[:2], layers)}
    go = partial(jit_run, ARCH, h=h, positions=whole_positions(), lengths=LENGTHS)
    whole = jax.device_get(go(params=params, taps=(3, 1, 2)))
    for tree in (spoilt, cut):
        early = jax.device_get(go(params=tree, stop=2, taps=(0, 2)))
        chex.assert_trees_all_equal(early.h, early.taps[1], whole.taps[2])
        chex.assert_trees_all_equal(early.taps[0], h)
    late = jit_run(
        ARCH, params, whole.taps[1], positions=whole_positions(), lengths=LENGTHS, start=1
    )
    np.testing.assert_allclose(late.h, whole.taps[0], atol=1e-5)


@pytest.mark.parametrize("bad", [{"taps": (4,)}, {"stop": 2, "taps": (3,)}, {"stop": 4}])
def test_layers_that_are_not_there_are_named(bad, params, h):
    with pytest.raises(UserError, match="layers"):
        run(ARCH, params, h, positions=whole_positions(), lengths=LENGTHS, **bad)


def test_float32_parameters_train_in_bf16(params, h):
    def loss(params, h):
        out = run(ARCH, params, h, positions=whole_positions(), lengths=LENGTHS)
        assert out.h.dtype == jnp.bfloat16
        return jnp.mean(out.h.astype(jnp.float32) ** 2)

    grads = jax.jit(jax.grad(loss))(params, h.astype(jnp.bfloat16))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(jax.device_get(grads["layers"])))
    chex.assert_tree_all_finite(grads)


def test_gradients_equal_finite_differences(params, h):
    """Of the stream, the prefix and the edits, through the checkpointed scan."""
    given = GIVEN["all"]

    @jax.jit
    def loss(h, k, v, edits):
        full = replace(given, kv=replace(given.kv, k=k, v=v), edits=edits)
        out = run(
            WINDOW,
            params,
            h,
            positions=whole_positions(),
            lengths=LENGTHS,
            taps=(1, 2),
            delivery=full,
        )
        return jnp.mean(jnp.sin(out.taps)) + jnp.mean(jnp.cos(out.h))

    args = (h, given.kv.k, given.kv.v, given.edits)
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*args)
    args, grads = jax.device_get((args, grads))
    size = float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads))))

    def moved(by: float) -> float:
        step = np.float32(by / size)
        return float(loss(*jax.tree.map(lambda x, g: x + step * g, args, grads)))

    np.testing.assert_allclose((moved(0.01) - moved(-0.01)) / 0.02, size, rtol=1e-2)


def test_products_that_are_kept_are_not_computed_again(params, h):
    """The gradients are the same, and a layer's seven products are traced once less."""

    def loss(h, edits, remat):
        out = run(
            ARCH,
            params,
            h,
            positions=whole_positions(),
            lengths=LENGTHS,
            delivery=LayerInputs(edits=edits, slot_index=slots()),
            remat=remat,
        )
        return jnp.mean(jnp.cos(out.h))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    traced = [gradient.trace(h, deltas(), remat) for remat in ("full", "dots")]
    found = [one.lower().compile()(h, deltas()) for one in traced]
    for want, got in zip(*map(jax.tree.leaves, found), strict=True):
        size = np.abs(np.asarray(want)).max()
        np.testing.assert_allclose(got, want, atol=1e-6 * size, rtol=1e-5)
    products = [str(one.jaxpr).count("dot_general[") for one in traced]
    assert products[0] - products[1] == 7


@pytest.mark.parametrize("taps", [pytest.param((), marks=pytest.mark.slow), (2, 16)])
def test_the_frozen_stack_is_never_copied(taps):
    """Compiled temporaries stay far below the size of the stacked weights, gradient included."""
    arch = decoder("llama", 32, 128, 16, 4, 2, 32, 512)
    weights = jax.eval_shape(lambda: init(arch, jax.random.key(0)))
    stack = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights["layers"]))

    def loss(h, params, remat="full"):
        out = run(
            arch,
            params,
            h,
            remat=remat,
            positions=whole_positions(1, 8),
            lengths=np.full((1,), 8),
            stop=15 if not taps else None,
            taps=taps,
        )
        return jnp.sum(out.h) + (jnp.sum(out.taps) if taps else 0.0)

    h = jax.ShapeDtypeStruct((1, 8, arch.width), jnp.float32)
    for f in (loss, jax.grad(loss), jax.grad(partial(loss, remat="dots"))):
        used = jax.jit(f).lower(h, weights).compile().memory_analysis().temp_size_in_bytes
        assert used < stack / 4, (used, stack)


def test_a_prefix_may_be_seen_in_some_layers_alone(params, h):
    """As if the others were run without it; what it holds for them is never read."""
    at = {"positions": whole_positions(), "lengths": LENGTHS}
    kv = replace(prefix(), layers=(1,))
    given = LayerInputs(kv=kv, message_start=STARTS)
    found = real(jit_run(ARCH, params, h, delivery=given, **at).h)
    spoilt = replace(kv, k=np.array(kv.k) * [[[[[9.0]]]], [[[[1.0]]]], [[[[9.0]]]]])
    other = LayerInputs(kv=spoilt, message_start=STARTS)
    np.testing.assert_allclose(real(jit_run(ARCH, params, h, delivery=other, **at).h), found)
    first = jit_run(ARCH, params, h, stop=1, **at).h
    everywhere = LayerInputs(kv=prefix(), message_start=STARTS)
    second = jit_run(ARCH, params, first, start=1, stop=2, delivery=everywhere, **at).h
    third = jit_run(ARCH, params, second, start=2, stop=3, **at).h
    np.testing.assert_allclose(found, real(third), rtol=1e-4, atol=1e-5)
    whole = real(jit_run(ARCH, params, h, delivery=everywhere, **at).h)
    assert np.abs(whole - found).max() > 1e-3


def test_where_soft_tokens_stand_among_those_of_a_run() -> None:
    """Five tokens after three that were read before; what is no soft token, or not among them, is
    beyond the last one."""
    of = jax.jit(decoder_of._local_slots, static_argnums=2)
    slots, base = np.asarray([[-1, 0, 2], [3, 7, 8], [-1, 2, 9]]), np.asarray([0, 3, 3])
    assert of(slots, base, 5).tolist() == [[5, 0, 2], [0, 4, 5], [5, 5, 5]]
    assert decoder_of._local_slots(None, jnp.asarray([0]), 5) is None


def test_which_columns_are_the_messages() -> None:
    of = jax.jit(decoder_of._message, static_argnums=(1, 2))
    slots = np.asarray([[-1, 2], [0, 3]])
    own = [[False, False, True, False], [True, False, False, True]]
    assert of(LayerInputs(slot_index=slots), 2, 4).tolist() == own
    mask = np.asarray([[True, False, True], [False, True, True]])
    values = np.zeros((1, 2, 3, 1, 2))
    given = LayerInputs(KV(values, values, mask, np.zeros((2, 3))), slot_index=slots)
    both = of(given, 2, 4)
    assert both.tolist() == [a + b for a, b in zip(mask.tolist(), own, strict=True)]
    none = np.asarray(of(LayerInputs(), 2, 4))
    assert not none.any() and none.shape == (2, 4)


def test_how_far_a_window_looks_back() -> None:
    """By position, not by place: at 4 behind it is out of a window of 4."""
    at = np.asarray([[0.0, 3.0, 4.0, 9.5]])
    found = decoder_of._in_window(at[:, 2:], at, 4)
    assert found.tolist() == [[[False, True, True, True], [False, False, False, True]]]


def test_deltas_are_added_at_soft_tokens_alone() -> None:
    x, delta = np.zeros((2, 3, 1, 1)), np.asarray([[1.0, 2.0], [4.0, 8.0]])[..., None, None]
    found = np.asarray(jax.jit(decoder_of._add_at)(x, np.asarray([[2, 0], [3, 1]]), delta))
    assert found[..., 0, 0].tolist() == [[2, 0, 1], [0, 8, 0]]
    assert decoder_of._add_at(x, None, delta) is x


def test_columns_that_only_some_layers_see() -> None:
    values = np.arange(6.0, dtype=np.float32).reshape(3, 1, 2, 1, 1)
    kv = KV(values, -values, np.ones((1, 2), bool), np.zeros((1, 2)), (0, 2))
    found = jax.jit(decoder_of._by_layer)(
        LayerInputs(kv, edits=Edits(k_delta=values, v_delta=2 * values))
    )
    assert found["prefix_seen"].tolist() == [True, False, True]
    for name, wanted in {"prefix_k": 1, "prefix_v": -1, "k_delta": 1, "v_delta": 2}.items():
        np.testing.assert_array_equal(found[name], wanted * values, err_msg=name)
    assert decoder_of._by_layer(LayerInputs()) == {}
    edit = Lora({"q": values}, {"q": -values}, 2.0, (1, 4, 6))
    one = decoder_of._only(edit, 4)
    np.testing.assert_array_equal(one.a["q"], values[1:2])
    np.testing.assert_array_equal(one.b["q"], -values[1:2])
    assert (one.layers, one.scale) == ((0,), 2.0)


def test_lengths_say_the_mask_where_it_is_causal_alone() -> None:
    """cudnn then computes it without one in memory."""
    at, lengths = np.asarray([[0, 1, 2]]), np.asarray([3])
    allowed = np.ones((1, 3, 3), bool)
    values = np.zeros((1, 1, 2, 1, 4))
    kv = KV(values, values, np.ones((1, 2), bool), np.zeros((1, 2)))

    @partial(jax.jit, static_argnums=0)
    def of(arch: Any, given: LayerInputs) -> Any:
        mask = decoder_of._shared(arch, at, lengths, given, None).mask
        assert mask.lengths is None or mask.lengths is lengths
        return mask

    assert of(ARCH, LayerInputs()).lengths is not None
    own = np.asarray(of(ARCH, LayerInputs()).allowed)
    assert own[0, 0].tolist() == np.tri(3, dtype=bool).tolist()
    for arch, given in (
        (ARCH, LayerInputs(allowed=allowed)),
        (WINDOW, LayerInputs()),
        (ARCH, LayerInputs(kv)),
    ):
        assert of(arch, given).lengths is None
