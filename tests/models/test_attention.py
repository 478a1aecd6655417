"""The reference attention against a plain formula, and what is refused before compiling."""

from types import SimpleNamespace
from typing import Any

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
    found = np.asarray(jax.jit(lambda *x: attention(*x, Mask(allowed)))(q, k, v))
    for b, i, n in np.ndindex(2, 3, 4):
        seen = allowed[b, 0, i] if allowed[b, 0, i].any() else np.zeros(5, bool)
        scores = k[b, :, n // 2] @ q[b, i, n] / np.sqrt(8)
        weights = np.where(seen, np.exp(scores), 0) if seen.any() else np.ones(5)
        want = weights / weights.sum() @ v[b, :, n // 2]
        np.testing.assert_allclose(found[b, i, n], want, atol=1e-5)


@pytest.mark.parametrize("columns", [6, 7])
@pytest.mark.parametrize("by_lengths", [True, False])
def test_cudnn_is_given_even_sizes_and_the_same_problem(monkeypatch, columns, by_lengths):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, columns, 2, 8)).astype(np.float32)
    lengths = np.asarray([columns, 3])
    at = np.arange(columns)
    allowed = (at[:, None] >= at[None])[None, None] & (at[None] < lengths[:, None])[:, None, None]
    mask = Mask(jnp.asarray(allowed), jnp.asarray(lengths) if by_lengths else None)
    xla, masks = jax.nn.dot_product_attention, []

    def stands_for_cudnn(q, k, v, implementation, **how):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0  # what cudnn asks for in training
        if "mask" in how:
            masks.append(how["mask"])
        return xla(q, k, v, implementation="xla", **how)

    @jax.jit
    def both(*x):
        want = attention(*x, mask)
        monkeypatch.setattr(jax.nn, "dot_product_attention", stands_for_cudnn)
        return cudnn(*x, mask), want, masks

    found, want, given = both(q, k, v)
    assert len(given) == (not by_lengths)
    for one in given:  # the softmax over no key may be NaN, and so the gradients of all keys
        assert np.asarray(one).any(axis=-1).all()
    assert found.shape == want.shape
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], want[row, :length], atol=1e-6)


def kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, implementation: str
) -> jax.Array:
    """Attention whose backward pass is that of cudnn's kernel for compute capability 9.0, which
    walks the keys in tiles of 128 rows, zeros beyond the last, and masks these only where the keys
    are no multiple of 64 (github.com/NVIDIA/cudnn-frontend/pull/628)."""
    assert implementation == "cudnn"
    assert q.shape[1] % 2 == k.shape[1] % 2 == 0

    def forward(q, k, v):
        each = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, each, axis=2) for x in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[3] ** 0.5
        scores = jnp.where(mask, scores, -(2.0**41))
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        return jnp.einsum("bhts,bshd->bthd", jnp.exp(scores - total), v), (k, v, scores, total)

    @jax.custom_vjp
    def mixed(q, k, v):
        return forward(q, k, v)[0]

    def backward(kept, given):
        q, k, v = kept
        out, (wide_k, wide_v, scores, total) = forward(q, k, v)
        keys, groups = k.shape[1], q.shape[2] // k.shape[2]
        beyond = [(0, 0), (0, -keys % 128), (0, 0), (0, 0)]
        wide_k, wide_v = jnp.pad(wide_k, beyond), jnp.pad(wide_v, beyond)
        beyond = [(0, 0), (0, 0), (0, 0), (0, -keys % 128)]
        scores = jnp.pad(scores, beyond, constant_values=-jnp.inf if keys % 64 else 0)
        weights = jnp.exp(scores - total)
        slope = jnp.einsum("bthd,bshd->bhts", given, wide_v)
        slope -= jnp.einsum("bthd,bthd->bht", given, out)[..., None]
        slope *= weights / q.shape[3] ** 0.5

        def shared(x):
            return x[:, :keys].reshape(*k.shape[:3], groups, -1).sum(axis=3)

        return (
            jnp.einsum("bhts,bshd->bthd", slope, wide_k),
            shared(jnp.einsum("bhts,bthd->bshd", slope, q)),
            shared(jnp.einsum("bhts,bthd->bshd", weights, given)),
        )

    mixed.defvjp(lambda *x: (mixed(*x), x), backward)
    return mixed(q, k, v)


@pytest.mark.parametrize(
    ("queries", "keys", "broken"),
    [
        (64, 64, True),
        (63, 63, False),  # one more makes 64
        (40, 64, True),
        (64, 192, True),
        (72, 128, False),
    ],
)
def test_gradients_are_finite_where_all_keys_are_far_from_a_query(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, broken: bool
) -> None:
    """Scores of -120: those of real receivers go as low."""
    rng = np.random.default_rng(0)
    sizes = [(2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 8)]
    q, k, v, given = (rng.standard_normal(s).astype(np.float32) for s in (*sizes, sizes[0]))
    q[..., 0] = (120 * 8**0.5) ** 0.5
    k[..., 0] = -q[0, 0, 0, 0]
    own = np.tri(queries, keys, keys - queries, dtype=bool)
    allowed = np.broadcast_to(own, (2, 1, queries, keys)).copy()
    allowed[1, :, : queries // 2, : keys - queries] = False  # a prefix that not all queries see

    xla = jax.nn.dot_product_attention

    def either(*x: Any, implementation: str, **how: Any) -> Any:
        if implementation == "xla":
            return xla(*x, implementation=implementation, **how)
        return kernel(*x, implementation=implementation, **how)

    @jax.jit
    def ways(q: Any, k: Any, v: Any, given: Any) -> Any:
        def gradients(how: Any) -> Any:
            return jax.vjp(how, q, k, v)[1](given)

        want = gradients(lambda *x: attention(*x, mask))
        even = queries % 2 == keys % 2 == 0
        raw = gradients(lambda *x: kernel(*x, mask.allowed, "cudnn"))[0] if even else None
        monkeypatch.setattr(jax.nn, "dot_product_attention", either)
        return gradients(lambda *x: cudnn(*x, mask)), want, raw

    mask = Mask(jnp.asarray(allowed))
    found, want, raw = ways(q, k, v, given)
    if raw is not None:
        assert np.isfinite(raw).all() != broken
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


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
        ({"platform": "gpu", "compute_capability": "8.0"}, {}, "cudnn"),
        ({"platform": "gpu", "compute_capability": "8.9"}, {}, "cudnn"),
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
