"""Codebook collapse (fault 20) on a small problem, and the parts that prevent it.

Sixteen clusters are sent through one slot of discrete codes and rebuilt. Where the inputs sit off
the origin, as hidden states do, one code of a codebook drawn around the origin is nearest to all of
them, and a bound is flat for all of them.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lw_jax.bottlenecks import codes, fsq, vq
from lw_jax.bottlenecks.base import Bottleneck
from lw_jax.models.dims import BridgeDims
from lw_jax.objectives import code_entropy
from lw_jax.objectives import vq as vq_loss
from lw_jax.objectives.base import mean
from lw_jax.objectives.common.context import Context
from lw_jax.types import Latent, Taps
from tests.tiny.bottlenecks import Given

WIDTH, CLUSTERS, ROWS, STEPS = 8, 16, 64, 300
CENTRES = np.random.default_rng(0).normal(0, 1, (CLUSTERS, WIDTH)).astype(np.float32)
OFF = 6.0


class Outcome(NamedTuple):
    """Of the last batch: codes in use, what `lw_jax.bottlenecks.codes.usage` says, how much is
    rebuilt (1 is all), share of entries where the bound is flat."""

    used: int
    said: dict[str, float]
    rebuilt: float
    saturation: float


def trained(
    config: Any, objective: Any = None, *, off: float = 0.0, weight: float = 0.0
) -> Outcome:
    """Encoder, bottleneck and decoder trained to rebuild the clusters, `off` the origin."""
    error, said, found, saturation = jax.device_get(_fit(config, objective)(off, weight))
    used = len(np.unique(found.reshape(ROWS, -1), axis=0))
    said = {name: float(value) for name, value in said.items()}
    return Outcome(used, said, 1 - float(error) / float(CENTRES.var(0).mean()), float(saturation))


@cache
def _fit(config: Bottleneck, objective: Any) -> Any:
    """One program for all offsets and weights of the objective."""
    linen = config.build(BridgeDims(1, 1, WIDTH))

    def run(params: Any, x: Any) -> tuple[Any, Any]:
        given = Latent((x @ params["in"])[:, None], jnp.ones((ROWS, 1), bool))
        out, sown = linen.apply({"params": params["own"]}, given, True, mutable=["intermediates"])
        return out.slots[:, 0] @ params["out"] + params["shift"][None], sown["intermediates"]

    def loss_of(params: Any, x: Any, weight: Any) -> tuple[Any, Any]:
        rebuilt, intermediates = run(params, x)
        ids = jnp.zeros((ROWS, 1), jnp.int32)
        context = Context(
            Given(None, intermediates),  # type: ignore[arg-type]
            params,
            None,  # type: ignore[arg-type]
            {"valid": jnp.ones(ROWS, bool)},
            {"source": Taps(jnp.zeros((1, ROWS, 1, 1)), ids == 0, ids)},
            jax.random.key(0),
        )
        error = jnp.mean(jnp.square(rebuilt - x))
        loss = error
        if isinstance(config, vq.Config):
            loss += mean(vq_loss.Config().terms(context, "r").loss)
        if objective is not None:
            loss += weight * mean(objective.Config().terms(context, "r").loss)
        return loss, (error, intermediates)

    optimiser = optax.adam(1e-2)

    def step(carry: Any, key: Any, off: Any, weight: Any) -> tuple[Any, Any]:
        params, state = carry
        which, noise, after = jax.random.split(key, 3)
        centres = jnp.asarray(CENTRES)[jax.random.randint(which, (ROWS,), 0, CLUSTERS)]
        x = off + centres + 0.05 * jax.random.normal(noise, centres.shape)
        grads, (error, intermediates) = jax.grad(loss_of, has_aux=True)(params, x, weight)
        updates, state = optimiser.update(grads, state)
        params = optax.apply_updates(params, updates)
        if config.trains_itself:
            params["own"] = config.after_step(params["own"], intermediates, after)
        said = codes.usage({"bottleneck": intermediates})
        return (params, state), (
            error,
            said,
            intermediates["codes"],
            intermediates.get("saturation", 0.0),
        )

    @jax.jit
    def fit(off: Any, weight: Any) -> Any:
        start = Latent(jnp.zeros((1, 1, WIDTH)), jnp.ones((1, 1), bool))
        eye = jnp.eye(WIDTH)
        own = linen.init(jax.random.key(0), start)["params"]
        params = {"in": eye, "out": eye, "shift": jnp.zeros(WIDTH), "own": own}
        keys = jax.random.split(jax.random.key(1), STEPS)
        one = partial(step, off=off, weight=weight)
        _, seen = jax.lax.scan(one, (params, optimiser.init(params)), keys)
        return jax.tree.map(lambda x: x[-1], seen)

    return fit


def test_a_codebook_collapses() -> None:
    found = trained(vq.Config(64, revive=None), off=OFF)
    assert found.used <= 3, found
    assert found.said["alive"] < 0.1
    assert found.said["perplexity"] < 3
    assert found.rebuilt < 0.5


def test_revived_codes_prevent_it() -> None:
    found = trained(vq.Config(64, revive=20), off=OFF)
    assert found.used >= CLUSTERS, found
    assert found.said["alive"] > 0.9
    assert found.rebuilt > 0.9


def test_the_entropy_bonus_spreads_the_codes() -> None:
    unit = vq.Config(64, "cosine", revive=None)
    without, bonus = (trained(unit, code_entropy, off=OFF, weight=w) for w in (0.0, 0.1))
    assert without.used < CLUSTERS / 1.5, without
    assert bonus.used > 1.5 * without.used, bonus
    assert bonus.rebuilt > without.rebuilt


def test_scalar_codes_need_no_codebook_but_inputs_within_their_bound() -> None:
    found = trained(fsq.Config((8,) * 4))
    assert found.used >= CLUSTERS, found
    assert found.rebuilt > 0.7
    assert found.saturation < 0.1
    flat = trained(fsq.Config((8,) * 4), off=OFF)
    assert flat.used <= 3, flat
    assert flat.saturation > 0.95
