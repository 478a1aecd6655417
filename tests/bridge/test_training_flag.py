"""Every part of a bridge is told whether this is a training step; nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import pytest

from lw_jax.bottlenecks import fsq
from lw_jax.bridge.config import BottleneckConfig
from tests.tiny.evaluation import RECEIVER, make_world

READER = f"readers_{RECEIVER}_"
PARTS = {
    "encode": {"compressor", "bottleneck"},
    "deliver": {f"{READER}deep_prefix", f"{READER}soft_tokens"},
    "narrowed": {"bottleneck"},
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("method", sorted(PARTS))
def test_every_part_is_told(method: str, train: bool) -> None:
    world = make_world(2).with_parts(1, bottleneck=BottleneckConfig(fsq=fsq.Config()))
    ctx, rows = world.ctx, world.batch(0, 2)
    bridge, rng, told = ctx.bridge, jax.random.key(0), {}

    def look(call: Callable[..., Any], given: Any, more: Any, context: Any) -> Any:
        flags = [x for x in (*given, *more.values()) if isinstance(x, bool)]
        if context.method_name == "__call__" and len(context.module.path) == 1 and flags:
            told[context.module.path[0]] = flags
        return call(*given, **more)

    def run(params: Any) -> Any:
        taps = bridge.extract(ctx.frozen.sender, rows, params, ctx.frozen.receivers)
        latent = bridge.encode(params, taps)
        with nn.intercept_methods(look):
            if method == "encode":
                return bridge.encode(params, taps, train=train, rng=rng)
            if method == "deliver":
                return bridge.deliver(params, RECEIVER, latent, train=train, rng=rng)
            return bridge.apply(params, latent, method=method, train=train, rng=rng)[0]

    jax.eval_shape(run, ctx.params)
    assert told == {part: [train] for part in PARTS[method]}
