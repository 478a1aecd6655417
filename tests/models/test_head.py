"""Chunked losses equal the plain ones, gradients included, without the full logits in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lw_jax.models import head
from lw_jax.models.params import init
from lw_jax.models.quant import quantise
from tests.tiny.arch import decoder, weights

UNTIED = decoder("llama", 29, 12, 1, 2, 1, 4, 8, init_std=0.5)
TIED = decoder("qwen2", 29, 12, 1, 2, 1, 4, 8, tied=True, init_std=0.5)


def states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 12)).astype(np.float32)


@pytest.fixture(scope="module", params=[UNTIED, TIED], ids=["untied", "tied"])
def model(request):
    return request.param, jax.device_put(weights(request.param, 0))


@pytest.fixture(scope="module")
def narrow(model):
    """The weights in bfloat16."""
    return jax.jit(lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p))(model[1])


def plain_logits(arch, params, h):
    x = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + arch.norm_eps)
    return x @ (params["embed"].T if arch.tied else params["head"])


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_scores_equal_the_plain_ones(model, chunk):
    arch, params = model
    h, labels = states(1, 2, 7), np.random.default_rng(2).integers(0, 29, (2, 7))

    @jax.jit
    def both(params, h, labels):
        scores = head.chunked_cross_entropy(arch, params, h, labels, chunk)
        return scores, plain_logits(arch, params, h)

    scores, z = both(params, h, labels)
    z = np.asarray(z, np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    of_label = np.take_along_axis(log_p, np.asarray(labels)[..., None], -1)
    ordered = np.sort(z, -1)
    np.testing.assert_allclose(scores.nll, -of_label[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(scores.argmax, z.argmax(-1))
    np.testing.assert_array_equal(scores.rank, (log_p > of_label).sum(-1))
    np.testing.assert_array_equal(scores.correct(labels), z.argmax(-1) == labels)
    np.testing.assert_allclose(scores.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(scores.margin, ordered[..., -1] - ordered[..., -2], rtol=1e-4)
    np.testing.assert_allclose(scores.uniform, -log_p.mean(-1), rtol=1e-5)


def test_gradients_equal_the_plain_ones(model):
    arch, params = model
    h, teacher = states(1, 13), states(3, 13)
    labels = np.random.default_rng(2).integers(0, 29, 13)
    weights = jnp.arange(13.0)

    def chunked(params, h, teacher):
        nll = head.chunked_cross_entropy(arch, params, h, labels, 4).nll
        return jnp.sum(weights * (nll + head.chunked_kl(arch, params, h, teacher, 2.0, 4)))

    def plain(params, h, teacher):
        z = plain_logits(arch, params, h)
        log_p = jax.nn.log_softmax(jax.lax.stop_gradient(plain_logits(arch, params, teacher)) / 2.0)
        kl = optax.losses.kl_divergence(jax.nn.log_softmax(z / 2.0), jnp.exp(log_p))
        nll = optax.losses.softmax_cross_entropy_with_integer_labels(z, labels)
        return jnp.sum(weights * (nll + kl))

    ours, theirs = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(params, h, teacher)
        for f in (chunked, plain)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    used = ["embed"] if arch.tied else ["head"]
    for name in used:
        np.testing.assert_allclose(ours[1][0][name], theirs[1][0][name], atol=1e-4)
    np.testing.assert_allclose(ours[1][1], theirs[1][1], atol=1e-4)
    assert np.abs(ours[1][1]).max() > 0.1
    assert (np.asarray(ours[1][2]) == 0).all()


def test_one_pass_for_scores_and_divergence_is_the_same(model):
    (arch, params), chunk = model, 4
    h, teacher = states(1, 13), states(3, 13)
    labels = np.random.default_rng(2).integers(0, 29, 13)
    weights = jnp.arange(13.0) / 13

    def apart(params, h, teacher):
        scores = head.chunked_cross_entropy(arch, params, h, labels, chunk)
        return scores, head.chunked_kl(arch, params, h, teacher, 2.0, chunk)

    def together(params, h, teacher):
        return head.chunked_scores_and_kl(arch, params, h, teacher, labels, 2.0, chunk)

    def loss(params, h, teacher, how):
        scores, kl = how(params, h, teacher)
        nll = scores.nll + 0.1 * (scores.uniform - scores.nll)
        return jnp.sum(weights * (nll + 3 * kl)), (scores, kl)

    made = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnames="how")
    (want, facts), grads = made(params, h, teacher, how=apart)
    (got, same), ours = made(params, h, teacher, how=together)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(facts), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * max(1e-6, np.abs(a).max()))


def products(jaxpr):
    """dtypes of the operands of every matrix product in a jaxpr and those inside it."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield [str(v.aval.dtype) for v in eqn.invars]
        for value in eqn.params.values():
            for one in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize("quant", [None, "int8"])
def test_the_backward_product_is_as_narrow_as_the_weights(model, narrow, quant):
    """A float32 cotangent would make a float32 copy of the whole head."""
    arch, wide = model
    if quant is not None and not arch.tied:
        wide, narrow = (
            {**p, "head": jax.jit(partial(quantise, fan_in=1, kind=quant))(p["head"])}
            for p in (wide, narrow)
        )
    labels = np.random.default_rng(2).integers(0, 29, 13)

    def loss(h, params):
        return jnp.mean(head.chunked_cross_entropy(arch, params, h, labels).nll)

    h = states(1, 13)
    short = h.astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(loss))
    traced = gradient.trace(short, narrow)
    found = list(products(traced.jaxpr.jaxpr))
    assert len(found) >= 3  # forward, forward again, backward
    assert found == [["bfloat16", "bfloat16"]] * len(found)
    want = np.asarray(gradient(h, wide), np.float32)
    got = np.asarray(traced.lower().compile()(short, narrow), np.float32)
    assert (want * got).sum() > 0.999 * np.linalg.norm(want) * np.linalg.norm(got)


def test_memory_holds_one_slice_of_logits():
    """Forward and backward, far below positions x vocabulary."""
    arch = decoder("llama", 4096, 16, 1, 2, 1, 8, 8)
    weights = jax.eval_shape(lambda: init(arch, jax.random.key(0)))

    def loss(h, params):
        labels = jnp.zeros((2048,), jnp.int32)
        nll = head.chunked_cross_entropy(arch, params, h, labels, 32).nll
        return jnp.sum(nll + head.chunked_kl(arch, params, h, jnp.cos(h), 1.0, 32))

    h = jax.ShapeDtypeStruct((2048, 16), jnp.float32)
    full = 2048 * 4096 * 4
    for f in (loss, jax.grad(loss)):
        used = jax.jit(f).lower(h, weights).compile().memory_analysis().temp_size_in_bytes
        assert used < full / 8, (used, full)


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def of_positions(h, teacher, labels, counted, mask):
    """The loss of the positions that count, and what it is made of; others may be left out."""
    params = weights(UNTIED, 0)
    scores, kl = head.chunked_scores_and_kl(UNTIED, params, h, teacher, labels, 1.0, 4, mask)
    nll = head.chunked_cross_entropy(UNTIED, params, h, labels, 4, mask).nll
    return jnp.sum(jnp.where(counted, scores.nll + kl + nll, 0)), (scores.nll, kl)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_positions_that_do_not_count_are_left_out(share):
    """Values, divergences and gradients of the others are the same; whole slices are not run."""
    h, teacher = states(1, 5, 7), states(3, 5, 7)
    rng = np.random.default_rng(2)
    labels, mask = rng.integers(0, 29, (5, 7)), rng.random((5, 7)) < share
    (total, found), grad = of_positions(h, teacher, labels, mask, mask)
    (wanted, plain), plain_grad = of_positions(h, teacher, labels, mask, None)
    np.testing.assert_allclose(total, wanted, rtol=1e-6)
    np.testing.assert_allclose(grad, plain_grad, rtol=1e-5, atol=1e-7)
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a)[mask], np.asarray(b)[mask], rtol=1e-6)
    left_out = 35 - 4 * -(-int(mask.sum()) // 4)
    assert (np.asarray(found[0]) == 0).sum() >= max(0, left_out - 3)
