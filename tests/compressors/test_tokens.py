"""A slot for every token: which, in which order, and that filling is not seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.compressors import tokens
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Features

X = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
MASK = np.arange(7)[None] >= np.array([[1], [2]])  # a head of one token, and of two
MASK[1, -2:] = False
VIEW = Features(jnp.asarray(X), jnp.asarray(MASK), jnp.zeros((2, 7), jnp.int32))


@pytest.mark.parametrize("linear", [False, True])
def test_slots_are_the_tokens_in_order(linear: bool) -> None:
    width = 3 if linear else 5
    module = tokens.Config(linear).build(BridgeDims(source_width=5, taps=1, latent_dim=width))
    latent, params = module.init_with_output(jax.random.key(0), {"source": VIEW})
    assert latent.mask.sum(axis=1).tolist() == latent.span.tolist() == [6, 3]
    x = X
    if linear:
        own = params["params"]["leave"]
        x = X @ np.asarray(own["kernel"]) + np.asarray(own["bias"])
    else:
        assert not params
    np.testing.assert_allclose(latent.slots[0, :6], x[0, 1:], atol=1e-5)
    np.testing.assert_allclose(latent.slots[1, :3], x[1, 2:5], atol=1e-5)
    assert not latent.slots[~latent.mask].any()
    assert latent.owner == (-1,) * 7


def test_features_of_another_width() -> None:
    module = tokens.Config(False).build(BridgeDims(source_width=5, taps=1, latent_dim=3))
    with pytest.raises(UserError, match=r"set bridge\.latent_dim to 5, or linear to true"):
        module.init(jax.random.key(0), {"source": VIEW})


def test_real_tokens_come_first_in_their_order() -> None:
    """Also of many, where a sort that is not stable would mix them."""
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(2, 60, 4)).astype(np.float32), rng.random((2, 60)) < 0.5
    view = Features(jnp.asarray(x), jnp.asarray(mask), jnp.zeros(mask.shape, jnp.int32))
    built = tokens.Config(linear=False).build(BridgeDims(4, 1, 4))
    found = jax.jit(built.apply)({}, {"source": view})
    for row in range(2):
        count = mask[row].sum()
        np.testing.assert_array_equal(found.slots[row, :count], x[row][mask[row]])
        assert not np.asarray(found.slots[row, count:]).any()
        assert found.mask[row].tolist() == [i < count for i in range(60)]
        assert float(found.span[row]) == count
