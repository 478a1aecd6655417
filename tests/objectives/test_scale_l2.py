"""Loudness is held where the reader says it started: notes of a real bridge reach objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.config import BridgeConfig, CompressorConfig, ReaderConfig, SourceConfig
from lw_jax.compressors import perceiver
from lw_jax.errors import UserError
from lw_jax.objectives import affine_l2, scale_l2
from lw_jax.objectives.base import mean
from lw_jax.readers import soft_tokens
from lw_jax.sources import hidden_states
from tests.tiny import objectives as world


def config(**reader: Any) -> BridgeConfig:
    return BridgeConfig(
        latent_dim=5,
        source=SourceConfig(hidden_states=hidden_states.Config(layers=(0, 1))),
        compressor=CompressorConfig(perceiver=perceiver.Config(2, width=8, heads=1, depth=0)),
        reader=ReaderConfig(soft_tokens=soft_tokens.Config(**reader)),
    )


def test_scale_and_colour_are_held_at_their_start() -> None:
    bridge = Bridge(config(colour=True), world.DIMS)
    params = jax.jit(bridge.init)(jax.random.key(0))
    rows = world.data()

    @jax.jit
    def losses(params: Any) -> Any:
        seen = world.context({"reader": None}, rows)
        seen = replace(seen, bridge=bridge, params=params)
        held: list[Any] = [scale_l2.Config(of="scale"), scale_l2.Config(of="colour")]
        found = [c.terms(seen, "r").loss for c in (*held, affine_l2.Config())]
        return [mean(term) for term in found], [term.count for term in found]

    start, counts = losses(params)
    np.testing.assert_allclose(start, [0.0, 0.0, 0.0], atol=1e-10)
    assert counts == [1.0, 1.0, 1.0]  # once for a batch, so several microbatches have their mean
    own = dict(params["readers"]["r"]["soft_tokens"])
    own["log_scale"] = own["log_scale"] + np.log(3.0)
    own["colour_bias"] = own["colour_bias"] + 0.5
    own["colour_gain"] = own["colour_gain"] * 2.0
    moved, _ = losses({**params, "readers": {"r": {"soft_tokens": own}}})
    np.testing.assert_allclose(moved, [4.0, 1.25, 1.25], rtol=1e-5)


def test_what_the_reader_does_not_have_cannot_be_held() -> None:
    seen = world.context({"reader": world.reader()}, world.data())
    with pytest.raises(UserError, match=r"objectives\.scale_l2: no reader of r has a colour"):
        world.terms("scale_l2", scale_l2.Config(of="colour"), seen)
    with pytest.raises(UserError, match=r"objectives\.affine_l2: .* set its colour to true"):
        world.terms("affine_l2", affine_l2.Config(), seen)
