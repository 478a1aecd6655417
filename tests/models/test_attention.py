"""The reference attention against a plain formula, and what is refused before compiling."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.models.attention import Mask, attention, check, chosen, cudnn


def test_equals_the_formula():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 5, 2, 8)).astype(np.float32)
    allowed = rng.random((2, 1, 3, 5)) < 0.6
    allowed[0, 0, 0] = False  # a query that may see nothing
    allowed[:, :, 1:, 0] = True
    found = np.asarray(attention(q, k, v, Mask(jnp.asarray(allowed))))
    for b, i, n in np.ndindex(2, 3, 4):
        seen = allowed[b, 0, i] if allowed[b, 0, i].any() else np.zeros(5, bool)
        scores = np.asarray(k[b, :, n // 2] @ q[b, i, n] / np.sqrt(8))
        weights = np.where(seen, np.exp(scores), 0) if seen.any() else np.ones(5)
        want = weights / weights.sum() @ np.asarray(v[b, :, n // 2])
        np.testing.assert_allclose(found[b, i, n], want, atol=1e-5)


@pytest.mark.parametrize("columns", [6, 7])
@pytest.mark.parametrize("by_lengths", [True, False])
def test_cudnn_is_given_even_sizes_and_the_same_problem(monkeypatch, columns, by_lengths):
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.standard_normal((3, 2, columns, 2, 8)), jnp.float32)
    lengths = jnp.asarray([columns, 3])
    at = jnp.arange(columns)
    allowed = (at[:, None] >= at[None])[None, None] & (at[None] < lengths[:, None])[:, None, None]
    mask = Mask(allowed, lengths if by_lengths else None)
    xla = jax.nn.dot_product_attention

    def stands_for_cudnn(q, k, v, implementation, **how):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0  # what cudnn asks for in training
        if "mask" in how:  # the softmax over no key may be NaN, and so the gradients of all keys
            assert bool(how["mask"].any(axis=-1).all())
        return xla(q, k, v, implementation="xla", **how)

    want = attention(q, k, v, mask)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stands_for_cudnn)
    found = cudnn(q, k, v, mask)
    assert found.shape == want.shape
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], want[row, :length], atol=1e-6)


H200 = {"platform": "gpu", "compute_capability": "9.0"}


@pytest.mark.parametrize(
    ("device", "change", "want"),
    [
        (H200, {}, "cudnn"),
        (H200, {"quant": "int8"}, "cudnn"),
        (H200, {"quant": "nf4"}, "xla"),
        (H200, {"dtype": jnp.float32}, "xla"),
        (H200, {"head_dim": 256}, "xla"),
        (H200, {"head_dim": 36}, "xla"),
        (H200, {"tensor": 2}, "xla"),
        (H200, {"impl": "xla"}, "xla"),
        ({"platform": "gpu", "compute_capability": "7.5"}, {}, "xla"),
        ({"platform": "gpu", "compute_capability": "gfx942"}, {}, "xla"),
        ({"platform": "tpu"}, {}, "xla"),
        ({"platform": "cpu"}, {}, "xla"),
        ({"platform": "cpu"}, {"impl": "cudnn"}, "cudnn"),  # and is refused by `check`
    ],
)
def test_auto_is_cudnn_where_it_can_run(device, change, want):
    asked = {"impl": "auto", "head_dim": 128, "dtype": jnp.bfloat16, "quant": None, "tensor": 1}
    asked |= change
    shape = {"data": 1, "tensor": asked.pop("tensor")}
    mesh = SimpleNamespace(shape=shape, devices=np.array([[SimpleNamespace(**device)]]))
    assert chosen(mesh=mesh, **asked) == want


@pytest.mark.parametrize(
    ("impl", "dtype", "says"),
    [("flash", jnp.bfloat16, "choose from xla, cudnn"), ("cudnn", jnp.bfloat16, "needs an NVIDIA")],
)
def test_what_cannot_run_is_refused(impl, dtype, says):
    check("xla", jnp.float32, 64)
    with pytest.raises(UserError, match=says):
        check(impl, dtype, 64)
