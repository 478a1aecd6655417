"""Wherever a config has a `dropout`, every MLP it speaks of drops units: in training, never in use.

Nothing is computed: what a module does is followed through its trace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lw_jax.compressors import (
    interlingua,
    perceiver,
    pool_expand,
    pooled_queries,
    window,
    windows,
)
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.readers import coprocessor, deep_prefix, soft_tokens
from lw_jax.types import Features, Latent

RECEIVER = ModelDims(8, 2, 2, 4, 0.1)
DIMS = BridgeDims(8, 1, 8, {"r": RECEIVER})
SMALL: dict[str, Any] = {"width": 8, "heads": 2, "dropout": 0.5}
ENCODED: dict[str, Any] = SMALL | {"encoder_layers": 1, "depth": 1}
LATENT = Latent(
    jnp.ones((2, 4, 8)), jnp.ones((2, 4), bool), jnp.full((2,), 6.0, jnp.float32), (-1,) * 4
)


def views(*names: str) -> dict[str, Features]:
    shape = (2, 8)
    return {
        n: Features(jnp.ones((*shape, 8)), jnp.ones(shape, bool), jnp.zeros(shape, int))
        for n in names
    }


def dropping(module: nn.Module, seen: Any, train: bool) -> set[str]:
    """The parts, directly below a module, in which units are dropped."""
    found = set()

    def look(call: Callable[..., Any], given: Any, more: Any, context: Any) -> Any:
        drop = context.module
        if isinstance(drop, nn.Dropout) and context.method_name == "__call__":
            assert drop.rate == 0.5
            if not drop.deterministic:
                found.add(drop.path[0])
        return call(*given, **more)

    keys = {name: jax.random.key(0) for name in ("params", "dropout", "noise")}
    with nn.intercept_methods(look):
        jax.eval_shape(partial(module.init, train=train), keys, seen)
    return found


@pytest.mark.parametrize(
    ("config", "read", "parts"),
    [
        (perceiver.Config(slots=4, **ENCODED), ("a",), {"encoder", "resampler"}),
        (pool_expand.Config(slots=4, pools=2, **ENCODED), ("a",), {"encoder", "mixer"}),
        (pooled_queries.Config(slots=4, encoder_layers=1, **SMALL), ("a",), {"encoder"}),
        (
            window.Config(size=4, mode="hierarchical", **SMALL | {"depth": 0}),
            ("a",),
            {"level_0", "level_1"},
        ),
        (
            window.Config(size=2, views=("a", "b"), **ENCODED),
            ("a", "b"),
            {"encoder", "encoder_b", "mlp", "mixer"},
        ),
        (windows.Config(ratios=(1, 2), **ENCODED), ("a",), {"encoder", "mixer"}),
        (
            interlingua.Config(anchor="a", views=("b",), depth=1, **SMALL),
            ("a", "b"),
            {"align", "mlp"},
        ),
    ],
)
def test_compressors_drop_units_in_training_alone(
    config: Any, read: tuple[str, ...], parts: set[str]
) -> None:
    module = config.build(DIMS)
    assert dropping(module, views(*read), train=True) == parts
    assert not dropping(module, views(*read), train=False)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (soft_tokens.Config(hidden="mlp", dropout=0.5), {"mlp"}),
        (
            soft_tokens.Config(hidden="plain_mlp", mlp_layers=3, dropout=0.5),
            {"Dropout_0", "Dropout_1"},
        ),
        (deep_prefix.Config(dropout=0.5), {"mlp"}),
        (coprocessor.Config(dropout=0.5), {"mlp"}),
    ],
)
def test_readers_drop_units_in_training_alone(config: Any, parts: set[str]) -> None:
    module = config.build(RECEIVER)
    assert dropping(module, LATENT, train=True) == parts
    assert not dropping(module, LATENT, train=False)
