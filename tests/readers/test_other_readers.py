"""Readers of one matrix or two, by hand: deltas on soft tokens, a prompt that is learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.dims import ModelDims
from lw_jax.readers import coprocessor, soft_prompt
from lw_jax.readers.deep_prefix import KeyValueHeads
from lw_jax.types import Latent
from tests.tiny import by_hand

DIMS = ModelDims(8, 2, 2, 4, 0.02, key_rms=(1.0, 2.0), value_rms=(0.5, 0.25))
SLOTS = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
MASK = np.asarray([[True, True, True], [True, False, False]])


def test_deltas_of_slots_by_hand() -> None:
    """Of a slot that is none there is none."""
    module, latent = coprocessor.Config().build(DIMS), Latent(SLOTS, MASK)  # type: ignore[arg-type]
    p = by_hand.drawn(module, latent)
    z = by_hand.rms_norm(p["in_norm"], SLOTS)
    z = by_hand.rms_norm(p["out_norm"], z + by_hand.mlp(p["mlp"], z))

    @jax.jit
    def run(p: dict, z: jax.Array) -> tuple:
        given = module.apply({"params": p}, latent)
        return given.edits, KeyValueHeads(DIMS).apply({"params": p["heads"]}, z)  # type: ignore[union-attr]

    edits, wanted = run(p, z)
    for found, own in zip((edits.k_delta, edits.v_delta), wanted, strict=True):
        assert found.shape == (2, 2, 3, 2, 4)
        np.testing.assert_allclose(found, own * MASK[None, :, :, None, None], rtol=1e-3, atol=1e-4)
        assert np.abs(found[:, MASK]).min() > 0


@pytest.mark.parametrize("unit", [1.0, 8.0])
def test_a_learned_prompt_is_as_loud_as_embeddings(unit: float) -> None:
    """In whatever unit it is learned."""
    module, latent = soft_prompt.Config(64, unit).build(DIMS), Latent(SLOTS, MASK)  # type: ignore[arg-type]
    given, params = module.init_with_output(jax.random.key(0), latent)
    learned = params["params"]["prompt_tokens"]
    assert float(jnp.std(learned)) == pytest.approx(1 / unit, rel=0.1)
    np.testing.assert_allclose(given.prompt, learned * unit * 0.02, rtol=1e-5)
