"""Principal directions: numpy's, whole when all are kept, and moved by no step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.runs.exported import load_bridge, save_bridge
from lw_jax.sources import embeddings, hidden_states
from lw_jax.sources.normaliser import Normaliser
from lw_jax.sources.pca import Pca, Projection, fill, fit, pca_of, principal, scale
from lw_jax.train.optimiser import groups, make_optimiser
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.train.state import apply_gradients, new_state
from lw_jax.types import Taps

TAPS, WIDTH = 2, 6
DIMS = BridgeDims(WIDTH, TAPS, 8)


def states() -> np.ndarray:
    """Loud states [n, B, T, D], far from zero, whose channels hang together."""
    rng = np.random.default_rng(0)
    spread = np.array([9.0, 4.0, 2.0, 1.0, 0.5, 0.2])[:, None]
    mixed = rng.normal(size=(TAPS, WIDTH, WIDTH)) * spread
    x = np.einsum("nbtd,nde->nbte", rng.normal(size=(TAPS, 16, 12, WIDTH)), mixed)
    return (x + 30.0).astype(np.float32)


def gathered() -> tuple[np.ndarray, np.ndarray, int]:
    """Mean [n, D], sums of products [n, D, D] and count of `states`."""
    x = states().reshape(TAPS, -1, WIDTH).astype(np.float64)
    apart = x - x.mean(axis=1, keepdims=True)
    return x.mean(axis=1), np.einsum("ntd,nte->nde", apart, apart), x.shape[1]


def filled(config: Pca) -> Any:
    """The parameters of a source with a fitted projection."""
    mean, products, count = gathered()
    params = jax.eval_shape(Projection(config).init, jax.random.key(0), states())["params"]
    found = {f"source/{k}": v for k, v in fit(config, products, count).items()}
    return fill({"pca": params}, {**found, "source/mean": mean})


def projected(config: Pca) -> np.ndarray:
    params = filled(config)["pca"]
    return np.asarray(jax.jit(Projection(config).apply)({"params": params}, states()))


def test_directions_and_variances_are_those_of_numpys_svd() -> None:
    mean, products, count = gathered()
    directions, variances = principal(products, count)
    for tap in range(TAPS):
        x = states()[tap].reshape(-1, WIDTH).astype(np.float64) - mean[tap]
        _, values, vectors = np.linalg.svd(x, full_matrices=False)
        np.testing.assert_allclose(variances[tap], values**2 / count, rtol=1e-9)
        largest = np.abs(vectors).argmax(axis=1)
        signs = np.sign(vectors[np.arange(WIDTH), largest])
        np.testing.assert_allclose(directions[tap], (vectors * signs[:, None]).T, atol=1e-7)


def test_the_share_of_the_variance_that_is_kept() -> None:
    _, products, count = gathered()
    found = fit(Pca(2), products, count)
    np.testing.assert_allclose(
        found["kept"], found["variances"][:, :2].sum(axis=1) / np.trace(products.T) * count
    )
    assert (found["kept"] < 0.999).all()
    np.testing.assert_allclose(fit(Pca(WIDTH), products, count)["kept"], 1.0)
    assert fit(Pca(1), np.zeros((1, 3, 3)), 5.0)["kept"].tolist() == [1.0]


@pytest.mark.parametrize("whiten", [False, True])
def test_all_components_say_everything(whiten: bool) -> None:
    config = Pca(WIDTH, whiten)
    own = filled(config)["pca"]["statistics"]
    sizes = jax.jit(scale, static_argnums=0)(config, own["deviations"])
    x = projected(config) * np.asarray(sizes)[:, None, None]
    back = np.einsum("nbtc,ndc->nbtd", x, own["directions"])
    back = back + np.asarray(own["mean"])[:, None, None]
    np.testing.assert_allclose(back, states(), atol=1e-3)


def test_components_are_centred_at_rms_1_and_keep_their_shares_unless_whitened() -> None:
    kept = projected(Pca(3)).reshape(TAPS, -1, 3)
    np.testing.assert_allclose(kept.mean(axis=1), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.square(kept).mean(axis=(1, 2)), 1.0, rtol=1e-4)
    _, products, count = gathered()
    _, variances = principal(products, count)
    shares = variances[:, :3] / variances[:, :3].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(kept.var(axis=1), shares, rtol=1e-4)
    white = projected(Pca(3, whiten=True)).reshape(TAPS, -1, 3)
    for tap in range(TAPS):
        np.testing.assert_allclose(np.cov(white[tap].T, bias=True), np.eye(3), atol=1e-4)


def test_a_direction_that_nothing_lies_along_is_not_blown_up() -> None:
    of = jax.jit(scale, static_argnums=0)
    np.testing.assert_allclose(of(Pca(2, whiten=True), np.float32([[2.0, 1e-9]])), [[2.0, 2e-3]])


def test_an_unfitted_pca_gives_no_number() -> None:
    out, _ = jax.jit(Projection(Pca(2)).init_with_output)(jax.random.key(0), states())
    assert np.isnan(out).all()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_no_optimiser_moves_what_was_fitted(name: Any) -> None:
    own = filled(Pca(2))
    params = {
        "bridge": {
            "source": own,
            "compressor": {"leave": {"kernel": jnp.asarray(np.ones((2, 4), np.float32))}},
        }
    }
    group = groups(params)
    assert group["bridge/source/pca/statistics/directions"] == "adam"
    made = make_optimiser(OptimiserConfig(name=name, lr=0.1, weight_decay=0.1), params, 10)
    state = new_state(params, made, jax.random.key(0), ema=0.9)

    @jax.jit
    def step(state: Any, rng: jax.Array) -> Any:
        # worse than training: even with gradients they must stay
        grads = jax.tree.map(lambda x: jax.random.normal(rng, x.shape), state.params)
        return apply_gradients(state, grads, made, 0.9)

    for i in range(3):
        state = step(state, jax.random.key(i))
    for tree in (state.params, state.ema):
        chex.assert_trees_all_equal(tree["bridge"]["source"], own)
        assert not np.allclose(tree["bridge"]["compressor"]["leave"]["kernel"], 1.0)


def test_no_gradient_reaches_what_was_fitted() -> None:
    def loss(params: Any) -> jax.Array:
        out = Projection(Pca(2)).apply({"params": params}, states())
        return jnp.sum(out**3)  # type: ignore[operator]

    grads = jax.device_get(jax.jit(jax.grad(loss))(filled(Pca(2))["pca"]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_an_export_carries_it_to_the_last_bit(tmp_path: Path) -> None:
    kernel = jnp.asarray(np.full((3, 4), 1 / 3, np.float32))
    params = {"source": filled(Pca(3)), "compressor": {"leave": {"kernel": kernel}}}
    save_bridge(tmp_path, params, {"step": 1, "fingerprints": {}})
    read, _ = load_bridge(tmp_path, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(read["source"], params["source"])


def test_it_is_an_option_of_both_sources() -> None:
    taps = Taps(states(), np.ones((16, 12), bool), np.zeros((16, 12), np.int32))
    config = hidden_states.Config(layers=(0, 1), pca=Pca(3))
    assert pca_of(config) == Pca(3)
    assert pca_of(hidden_states.Config()) is None
    found = jax.jit(config.build(DIMS).apply)({"params": filled(Pca(3))}, taps)
    alone = projected(Pca(3))
    np.testing.assert_allclose(found.x, np.concatenate([*alone], axis=-1), rtol=1e-6)  # type: ignore[union-attr]
    one = taps.replace(states=taps.states[:1])  # type: ignore[attr-defined]
    own = jax.tree.map(lambda x: x[:1], jax.device_get(filled(Pca(3))))
    module = embeddings.Config(pca=Pca(3)).build(DIMS)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": own}, one).x, alone[0], rtol=1e-6)  # type: ignore[union-attr]


def test_options_that_do_not_fit() -> None:
    for source in (embeddings, hidden_states):
        with pytest.raises(UserError, match=r"^pca: it centres and scales the states itself"):
            source.Config(pca=Pca(2), normaliser=Normaliser())
    with pytest.raises(UserError, match=r"^mix: gated adds taps channel by channel"):
        hidden_states.Config(mix="gated", pca=Pca(2))
    with pytest.raises(UserError, match=r"^components: expected at least 1"):
        Pca(0)
