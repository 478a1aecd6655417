"""Prefix columns in every layer, in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.dims import ModelDims
from lw_jax.readers import deep_prefix
from lw_jax.types import Delivery, Latent
from tests.tiny import by_hand

DIMS = ModelDims(12, 3, 2, 4, 0.5, (0.1, 0.2, 0.4), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(("length", "layers"), [(5, ()), (None, (3, 1))])
def test_columns_by_hand(length: Any, layers: Any) -> None:
    """Of queries, or of the slots; in all layers or in some, and zeros in the others."""
    options = deep_prefix.Config(length=length, heads=2, mlp_ratio=2, layers=layers)
    module = options.build(DIMS)
    slots = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    mask = np.asarray([[True, True, True], [True, True, False]])
    latent = Latent(jnp.asarray(slots), jnp.asarray(mask), jnp.asarray([7.0, 4.0]))
    p = by_hand.drawn(module, latent)
    found: Delivery = jax.jit(module.apply)({"params": p}, latent)  # type: ignore[assignment]
    z, keep = by_hand.rms_norm(p["in_norm"], slots), mask
    if length is not None:
        start = np.broadcast_to(p["queries"], (2, 5, 6))
        z = start + by_hand.attention(p["columns"], start, z, mask)
        keep = np.ones((2, 5), bool)
    z = by_hand.rms_norm(p["out_norm"], z + by_hand.mlp(p["mlp"], z))
    assert found.kv is not None and found.embeds is None
    own = sorted(i - 1 for i in layers) or [0, 1, 2]
    for name, side in (("k", found.kv.k), ("v", found.kv.v)):
        heads = p["heads"]
        wanted = np.zeros((3, 2, z.shape[1], 2, 4))
        made = np.einsum("bcd,ldkh->lbckh", z, heads[name])
        wanted[own] = made * np.exp(heads[f"log_{name}"])[:, None, None, None, None]
        np.testing.assert_allclose(side, wanted, atol=1e-3)
    assert found.kv.mask.tolist() == keep.tolist()
    assert found.kv.layers == (tuple(own) if layers else ())
    columns = np.arange(z.shape[1])
    np.testing.assert_array_equal(found.kv.positions, np.broadcast_to(columns, keep.shape))


def test_they_start_as_loud_as_the_receivers_own() -> None:
    options = deep_prefix.Config(length=40, heads=2, mlp_ratio=0)
    module = options.build(DIMS)
    latent = Latent(jnp.ones((1, 2, 6)), jnp.ones((1, 2), bool))
    p = jax.jit(module.init)(jax.random.key(0), latent)["params"]
    np.testing.assert_allclose(np.exp(p["heads"]["log_k"]), [0.1, 0.2, 0.4], rtol=1e-5)
    np.testing.assert_allclose(np.exp(p["heads"]["log_v"]), [1, 2, 3], rtol=1e-5)
    assert float(jnp.std(p["queries"])) == pytest.approx(0.02, rel=0.2)
    assert float(jnp.std(p["heads"]["k"])) == pytest.approx(6**-0.5, rel=0.25)
