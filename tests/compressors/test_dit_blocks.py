"""The condition of a DiT in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import dit, dit_blocks
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.types import Features
from tests.tiny import by_hand

MASK = np.asarray([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
VIEW = Features(
    jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 6)), jnp.float32),
    jnp.asarray(MASK),
    jnp.zeros(MASK.shape, jnp.int32),
)


@pytest.mark.parametrize("kind", ["mean", "cross", "attention_pool"])
def test_the_condition_by_hand(kind: Any) -> None:
    """Of a text without a token the mean is nothing."""
    net = dit_blocks.Condition(8, 2, kind)
    p = by_hand.drawn(net, VIEW)
    found = jax.jit(net.apply)({"params": p}, VIEW)
    tokens = by_hand.dense(p["enter"], np.asarray(VIEW.x))
    tokens = tokens + by_hand.sinusoid(MASK.cumsum(1) - 1, 8)
    tokens = by_hand.rms_norm(p["source_norm"], tokens)
    np.testing.assert_allclose(found.tokens[MASK], tokens[MASK], atol=1e-4)
    np.testing.assert_array_equal(found.mask, MASK)
    summary = np.stack([tokens[0, 1:4].mean(0), tokens[1, :2].mean(0), np.zeros(8)])
    np.testing.assert_allclose(found.summary, summary, atol=1e-4)
    if kind == "cross":
        assert found.added is None
        return
    added = summary
    if kind == "attention_pool":
        query = np.broadcast_to(p["pool_queries"], (3, 1, 8))
        read = by_hand.attention(p["attend"], query, tokens, MASK)[:, 0]
        added = by_hand.rms_norm(p["pool_norm"], read)
    np.testing.assert_allclose(found.added[:2], by_hand.dense(p["pool"], added)[:2], atol=1e-4)


def test_what_a_length_costs_and_how_many_tokens_were_read() -> None:
    """Of a target longer than the slots it is that of all slots."""
    dims = BridgeDims(6, 1, 4, {"r": ModelDims(4, 1, 1, 4, 0.5)})
    net = dit.Config(slots=3, width=8, heads=2, depth=1, steps=1).build(dims)
    views = {"source": VIEW}
    real = jnp.arange(5)[None] < jnp.asarray([[2], [5], [0]])
    target = Features(jnp.ones((3, 5, 4)), real, jnp.zeros((3, 5), jnp.int32))
    key = {"noise": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: net.init({"params": jax.random.key(0), **key}, views))
    rng = np.random.default_rng(7)
    p = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)

    @jax.jit
    def run(p: Any) -> Any:
        loss = net.apply(p, views, target, method="loss", rngs=key)
        summary = net.apply(p, VIEW, method=lambda net, view: net.condition(view).summary)
        return loss, net.apply(p, views, rngs=key), summary

    loss, latent, summary = run(p)
    z = by_hand.dense(p["params"]["length"], np.asarray(summary))
    wanted = np.log(np.exp(z).sum(-1)) - z[np.arange(3), [2, 3, 0]]
    np.testing.assert_allclose(loss.length_nll, wanted, rtol=1e-4)
    assert loss.mask.sum(1).tolist() == [2, 3, 0]
    assert loss.cut.tolist() == [False, True, False]
    assert latent.span.tolist() == [3, 2, 0]
    assert latent.mask.sum(1).tolist() == z.argmax(-1).tolist()
