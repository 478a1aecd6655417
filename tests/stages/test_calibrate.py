"""Statistics gathered batch by batch are those of all tokens at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.stages.calibrate import combine, moments


def test_batches_combine_to_the_whole():
    x = jax.random.normal(jax.random.key(0), (2, 12, 5, 3)) * 4 + 100
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (12, 5))
    mask = mask.at[8:].set(False)  # a batch without a real token changes nothing
    found = None
    for start in range(0, 12, 4):
        part = moments(x[:, start : start + 4], mask[start : start + 4])
        found = combine(found, jax.device_get(part))
    assert found is not None
    count, mean, squares = found
    kept = np.asarray(x, np.float64)[:, np.asarray(mask)]
    assert count == kept.shape[1] == int(jnp.sum(mask))
    np.testing.assert_allclose(mean, kept.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(squares / count), kept.std(axis=1), rtol=1e-4)
