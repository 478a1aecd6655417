"""Which tokens of the source each slot reads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import perceiver, window
from lw_jax.models.dims import BridgeDims
from lw_jax.readers import soft_tokens
from lw_jax.sources import hidden_states
from lw_jax.types import Taps
from tests.tiny.evaluation import fresh

ROWS, SLOTS, TOKENS, WIDTH, LENGTH = 3, 4, 6, 12, 5


def bridge(**compressor: object) -> Bridge:
    config = BridgeConfig(
        latent_dim=8,
        source=SourceConfig(hidden_states=hidden_states.Config()),
        compressor=CompressorConfig(**compressor),  # type: ignore[arg-type]
        reader=ReaderConfig(soft_tokens=soft_tokens.Config()),
    )
    return Bridge(config, BridgeDims(WIDTH, 1, 8))


def taps() -> dict[str, Taps]:
    """The first row has a token less than the others."""
    states = np.random.default_rng(1).normal(size=(1, ROWS, TOKENS, WIDTH)).astype(np.float32)
    mask = np.ones((ROWS, TOKENS), bool)
    mask[0, LENGTH:] = False
    ids = np.zeros((ROWS, TOKENS), np.int32)
    return {"source": Taps(*map(jnp.asarray, (states, mask, ids)))}


def test_shares_of_the_tokens_are_the_mean_of_layers_and_heads() -> None:
    """Of two layers, each with two heads; a layer whose queries are zero reads all alike."""
    made = bridge(perceiver=perceiver.Config(slots=SLOTS, width=16, heads=2, depth=2))
    params = jax.device_get(fresh(made, 2))
    run = jax.jit(partial(made.reads, rows=2))
    latent, read = jax.device_get(run(params, taps()))
    assert read is not None
    assert (latent.slots.shape, read.shape) == ((2, SLOTS, 8), (2, SLOTS, TOKENS))
    np.testing.assert_allclose(read.sum(axis=-1), 1.0, rtol=1e-5)
    assert not read[0, :, LENGTH:].any()
    assert float(read.std(axis=-1).min()) > 1e-4
    own = params["compressor"]["resampler"]
    even = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "cross" in jax.tree_util.keystr(path) else x, own
    )
    alike = {**params, "compressor": {**params["compressor"], "resampler": even}}
    _, read = jax.device_get(run(alike, taps()))
    np.testing.assert_allclose(read[0, :, :LENGTH], 1 / LENGTH, rtol=1e-5)
    np.testing.assert_allclose(read[1], 1 / TOKENS, rtol=1e-5)


def test_windows_do_not_attend_to_the_source() -> None:
    made = bridge(window=window.Config(size=2, mode="mean", width=16, heads=2, depth=0))
    latent, read = jax.jit(partial(made.reads, rows=2))(fresh(made, 2), taps())
    assert latent.slots.shape == (2, 3, 8)
    assert read is None
