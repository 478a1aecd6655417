"""Decoding by fused kernels, interpreted: it writes what the decoder writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models import kernels
from lw_jax.models.apart import apart
from lw_jax.models.arch import Arch, Rope
from lw_jax.models.attention import Mask, attention
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import LayerInputs, embed_tokens
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import DecodeOptions, generate
from lw_jax.models.params import init
from lw_jax.models.quant import dequantise, quantise
from lw_jax.models.rope import rotate
from lw_jax.models.spec import open_model
from lw_jax.types import KV, Array

ROOT = Path(__file__).parents[2]
TEXTS = [
    "Lena lives in",
    "The red box holds",
    "Tom works as a",
    "Anna likes",
    "The key is in the",
    "Who lives in",
    "Ben has a",
    "The code of the door is",
]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decoder(**switches: Any) -> tuple[Arch, Any]:
    """Two layers of random weights, apart: norms and biases too."""
    family = "qwen2" if switches.get("qkv_bias") else "llama"
    arch = Arch(family, 128, 64, 2, 4, 2, 32, 96, 1e-5, Rope(1e4), **switches)
    shapes = jax.eval_shape(partial(init, arch), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    filled = [0.15 * drawn(*x.shape, seed=i) for i, x in enumerate(leaves)]
    return arch, jax.jit(apart)(jax.tree.unflatten(tree, filled))


@pytest.mark.parametrize(
    "switches", [pytest.param({}, marks=pytest.mark.slow), {"qkv_bias": True, "tied": True}]
)
def test_it_writes_what_the_decoder_writes(switches: dict[str, Any]) -> None:
    arch, params = decoder(**switches)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 128, (3, 70)), jnp.int32)

    def written(fused: bool) -> Any:
        return generate(
            arch,
            params,
            embed_tokens(params, ids),
            positions=jnp.broadcast_to(jnp.arange(70)[None], ids.shape),
            lengths=jnp.asarray([70, 3, 64]),
            options=DecodeOptions(6),
            fused=fused,
        )

    plain, fused = (jax.jit(written, static_argnums=0).trace(x) for x in (False, True))
    one, other = (traced.lower().compile()() for traced in (plain, fused))
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert "pallas_call" in str(fused.jaxpr)


@pytest.mark.parametrize("kind", [None, "int8", "float8"])
def test_products_of_plain_and_stored_weights(kind: str | None) -> None:
    x, w, bias = drawn(3, 256), drawn(256, 2, 96), drawn(2, 96)

    @jax.jit
    def computed(x: Array, w: Array, bias: Array) -> tuple[Array, ...]:
        stored: Any = w if kind is None else quantise(w, 1, kind)
        plain = w if kind is None else dequantise(stored, jnp.float32)
        gated, biased = (
            kernels.product(x, stored, gated=True),
            kernels.product(x, stored, bias=bias),
        )
        return plain, gated[0], biased[0], kernels.product(x, stored)

    plain, gated, biased, parts = map(np.asarray, computed(x, w, bias))
    expected = np.einsum("bi,ico->bco", x, plain)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    close(gated, expected[:, 0] / (1 + np.exp(-expected[:, 0])) * expected[:, 1])
    close(biased.reshape(3, 2, 96), expected + bias)
    assert parts.shape == (4, 3, 192)
    close(parts.sum(0).reshape(3, 2, 96), expected)


@pytest.mark.parametrize("width", [64, 96])
def test_a_norm_of_the_stream_with_a_product(width: int) -> None:
    h, norm, sums = drawn(3, width), drawn(width, seed=1), drawn(4, 3, width, seed=2)
    for given in (None, sums):
        after, x = jax.jit(kernels.normed, static_argnums=2)(h, norm, 1e-5, given)
        expected = h if given is None else h + given.sum(0)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
        size = np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(x, expected / size * norm, rtol=1e-5, atol=1e-6)


def test_attention_over_a_long_cache_in_parts() -> None:
    arch, room = SimpleNamespace(heads=4, kv_heads=2, head_dim=32), 2100
    qkv, past = drawn(2, 8, 32), (drawn(2, room, 2, 32, seed=1), drawn(2, room, 2, 32, seed=2))
    lengths, angle = np.asarray([2090, 100]), drawn(2, 16)
    cos, sin = np.cos(angle), np.sin(angle)

    @jax.jit
    def computed(qkv: Array, past: tuple[Array, Array]) -> Any:
        turned = rotate(qkv[:, None, :6], cos[:, None], sin[:, None])
        rows = jnp.arange(2)
        k = past[0].at[rows, lengths].set(turned[:, 0, 4:])
        v = past[1].at[rows, lengths].set(qkv[:, 6:])
        seen = jnp.asarray((np.arange(room)[None] <= lengths[:, None])[:, None, None])
        expected = attention(turned[:, :, :4], k, v, Mask(seen))[:, 0]
        given = (jnp.asarray(x) for x in (cos, sin, lengths))
        return kernels.attend(arch, qkv, *given, past), (expected, k, v)  # type: ignore[arg-type]

    (mixed, (keys, values)), (expected, k, v) = computed(qkv, past)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    np.testing.assert_allclose(keys, k, atol=1e-6)
    np.testing.assert_array_equal(values, v)


def test_a_full_row_is_left_as_it_is() -> None:
    arch = SimpleNamespace(heads=2, kv_heads=1, head_dim=32)
    past = drawn(1, 64, 1, 32), drawn(1, 64, 1, 32, seed=1)
    angles = np.ones((1, 16), np.float32), np.zeros((1, 16), np.float32)
    attend = jax.jit(partial(kernels.attend, arch))  # type: ignore[arg-type]
    _, (keys, values) = attend(drawn(1, 4, 32), *angles, np.asarray([64]), past)
    np.testing.assert_array_equal(keys, past[0])
    np.testing.assert_array_equal(values, past[1])


def test_where_the_kernels_are_used() -> None:
    arch, params = decoder()
    mesh = make_mesh(MeshConfig(data=1))
    storage: dict[str, Any] = {"dtype": jnp.bfloat16, "quant": None}
    assert not kernels.chosen("xla", mesh, arch, **storage)
    with pytest.raises(
        UserError, match="decoding: kernels is not possible: there is no NVIDIA GPU"
    ):
        kernels.chosen("kernels", mesh, arch, **storage)
    gpu = np.array([SimpleNamespace(platform="gpu", compute_capability="9.0")], object)
    one: Any = SimpleNamespace(devices=gpu, size=1)
    assert kernels.chosen("kernels", one, arch, **storage)
    with pytest.raises(UserError, match="they compute in bfloat16, not float32"):
        kernels.chosen("kernels", one, arch, dtype=jnp.float32, quant=None)
    two: Any = SimpleNamespace(devices=gpu, size=2)
    with pytest.raises(UserError, match="several devices"):
        kernels.chosen("kernels", two, arch, **storage)
    assert kernels.takes(arch, "nf4") == "they do not read weights of 4 bits"
    assert kernels.fits(params, 16, LayerInputs())
    assert not kernels.fits(params, 17, LayerInputs())
    columns = drawn(2, 1, 3, 2, 32)
    prefix = KV(columns, columns, np.ones((1, 3), bool), np.zeros((1, 3)))  # type: ignore[arg-type]
    assert not kernels.fits(params, 1, LayerInputs(kv=prefix))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_a_trained_model_writes_the_same(quant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the tokens of a model that knows what comes next are the decoder's, but for ties
    that rounding decides. (Called without pytest, which sees CPUs alone, it runs on a GPU.)"""
    monkeypatch.setattr(kernels, "INTERPRETED", jax.default_backend() == "cpu")
    how: dict[str, Any] = {"dtype": "bfloat16", "quant": quant, "unroll": "always"}
    spec = open_model("reader", ModelConfig(str(ROOT / "zoo" / "tiny-llama"), **how))
    model = spec.load(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert isinstance(model, FrozenDecoder)
    rows = [spec.tokenizer.encode(text)[:12] for text in TEXTS]
    lengths = jnp.asarray([len(row) for row in rows], jnp.int32)
    ids = jnp.asarray([row + [0] * (12 - len(row)) for row in rows], jnp.int32)

    @partial(jax.jit, static_argnums=0)
    def written(fused: bool) -> Any:
        return generate(
            model.arch,
            model.params,
            embed_tokens(model.params, ids),
            positions=jnp.broadcast_to(jnp.arange(12)[None], ids.shape),
            lengths=lengths,
            options=DecodeOptions(24),
            fused=fused,
        )

    one, other = written(False), written(True)
    same = np.asarray(one.ids == other.ids)
    assert same.mean() >= 0.5
    # Up to the first difference, and there: both saw the same, so both took about the likeliest.
    alike = np.logical_and.accumulate(same, axis=1)
    until = np.concatenate([np.ones((len(rows), 1), bool), alike[:, :-1]], axis=1)
    off = np.abs(np.asarray(one.logprobs - other.logprobs))[until]
    assert off.max() < 0.2
    assert off.mean() < 0.02
