"""Products of 8-bit floats: how far they are from exact ones, forward and backward."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.data.facts import FactsRows
from lw_jax.models import head
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import embed_tokens, run
from lw_jax.models.head import chunked_cross_entropy
from lw_jax.models.load import load_params
from lw_jax.models.quant import FLOAT8, dequantise, einsum, quantise
from lw_jax.models.spec import open_model
from tests.models import parity

ROOT = Path(__file__).parents[2]
SPECS = {
    "btd,dnh->btnh": ((2, 5, 48), (48, 4, 8), 1),
    "btnh,nhd->btd": ((2, 5, 4, 8), (4, 8, 48), 2),
    "btd,dcf->btcf": ((2, 5, 48), (48, 2, 16), 1),
    "nd,dv->nv": ((7, 48), (48, 40), 1),
}


def off(found: np.ndarray, want: np.ndarray, axes: tuple[int, ...]) -> float:
    """The largest error of a token or channel, relative to its size."""
    return float(np.sqrt(((found - want) ** 2).sum(axes) / (want**2).sum(axes)).max())


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_and_its_gradient(spec: str) -> None:
    of_x, of_w, fan_in = SPECS[spec]
    rng = np.random.default_rng(0)
    by_row = 10.0 ** np.arange(of_x[0]).reshape(-1, *(1,) * (len(of_x) - 1))
    x = np.float32(rng.standard_normal(of_x) * by_row)
    w = np.float32(rng.standard_normal(of_w) * 10.0 ** -(np.arange(of_w[-1]) % 4))
    want = np.einsum(spec, x, w)
    g = np.float32(rng.standard_normal(want.shape))

    @jax.jit
    def computed(x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
        stored = quantise(w, fan_in, "float8")
        assert stored.codes.dtype == FLOAT8
        exact = jax.vjp(lambda x: jnp.einsum(spec, x, w), x)[1]
        got, back = jax.vjp(lambda x: einsum(spec, x, stored), x)
        wide = einsum(spec, x.astype(jnp.bfloat16), stored, jnp.float32)
        assert wide.dtype == jnp.float32
        return dequantise(stored, jnp.float32), got, back(g)[0], exact(g)[0]

    restored, got, back, exact = map(np.asarray, computed(x, w))
    assert off(restored, w, tuple(range(fan_in))) < 0.04
    rows = tuple(range(1 if len(of_x) == 2 else 2, want.ndim))
    assert off(got, want, rows) < 0.06
    ins = tuple(range(1 if len(of_x) == 2 else 2, x.ndim))
    assert off(back, exact, ins) < 0.06

    def gradient(x: jax.Array, w: jax.Array) -> Any:
        stored = quantise(w, fan_in, "float8")
        return jax.vjp(lambda x: einsum(spec, x, stored), x)[1](g)

    program = str(jax.make_jaxpr(gradient)(x, w))
    dots = [line for line in program.splitlines() if "dot_general[" in line]
    assert len(dots) == 2


@pytest.mark.slow
def test_a_trained_model_says_nearly_the_same() -> None:
    """On its own kind of text: next tokens, states after each layer, the gradient of the input."""
    spec = open_model("reader", ModelConfig(str(ROOT / "zoo" / "tiny-llama"), "float32"))
    rows = [spec.tokenizer.encode(row[0].context)[:48] for row in FactsRows("eval", 0, 2, 16)]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    real = np.arange(ids.shape[1])[None] < lengths[:, None]
    arch, mesh = spec.arch, parity.one_device()
    exact = load_params(spec.files(), mesh, dtype=jnp.float32)
    own = load_params(spec.files(), mesh, dtype=jnp.float32, quant="float8", apart=True)
    at = np.broadcast_to(np.arange(ids.shape[1])[None], ids.shape)

    def states(params: Any, h: jax.Array) -> jax.Array:
        every = tuple(range(1, arch.layers + 1))
        out = run(arch, params, h, positions=at, lengths=lengths, taps=every)
        assert out.taps is not None
        return out.taps

    @jax.jit
    def said(params: Any) -> tuple[jax.Array, jax.Array]:
        taps = states(params, embed_tokens(params, ids))
        z = head.logits(arch, params, taps[-1][real])
        return taps[:, real], jax.nn.log_softmax(z)

    @jax.jit
    def loss(h: jax.Array, params: Any) -> jax.Array:
        scores = chunked_cross_entropy(arch, params, states(params, h)[-1, :, :-1], ids[:, 1:])
        return jnp.sum(scores.nll * real[:, 1:])

    (a, p), (b, q) = said(exact), said(own)
    cosine = (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))
    assert cosine.mean(axis=1)[:-1].min() > 0.998
    assert cosine.mean(axis=1).min() > 0.99

    assert (jnp.exp(p) * (p - q)).sum(-1).mean() < 0.05
    assert (p.argmax(-1) == q.argmax(-1)).mean() > 0.85
    h = embed_tokens(exact, ids)
    g, f = (jax.grad(loss)(h, params) for params in (exact, own))
    # So small a model is sensitive: int8 gives 0.99 here, nf4 0.69.
    assert jnp.vdot(g, f) / (jnp.linalg.norm(g) * jnp.linalg.norm(f)) > 0.85
