"""What each objective moves: the bridge, the latent, and what the receiver is given.

One forward pass, then the backward pass once per objective: the losses are a vector, and its
Jacobian is pulled back row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lw_jax.bridge.bridge import Bridge
from lw_jax.layers.intermediates import Intermediates
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.base import mean
from lw_jax.objectives.common.context import Context
from lw_jax.train.plan import Batch, Plan, all_terms
from lw_jax.types import Array, Delivery, Latent, PyTree


@dataclass(frozen=True, eq=False)
class _Probed(Context):
    """A context with zeros added to the latent and to the deliveries, to differentiate by."""

    at_latent: Array | None = None
    at_given: dict[str, list[Array]] = field(default_factory=dict)

    def _encode(self) -> tuple[Latent, Intermediates]:
        latent, intermediates = super()._encode()
        if self.at_latent is not None:
            latent = replace(latent, slots=latent.slots + self.at_latent)
        return latent, intermediates

    def _give(self) -> dict[str, tuple[Delivery, Intermediates]]:
        found = super()._give()
        for name, zeros in self.at_given.items():
            delivery, sown = found[name]
            found[name] = _added(delivery, zeros), sown
        return found


def _floats(delivery: Delivery) -> list[Array]:
    """What of a delivery can be differentiated by."""
    leaves = jax.tree.leaves(delivery)
    return [x for x in leaves if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]


def _added(delivery: Delivery, zeros: list[Array]) -> Delivery:
    leaves, tree = jax.tree.flatten(delivery)
    rest = iter(zeros)
    floating = [jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) for x in leaves]
    return jax.tree.unflatten(
        tree, [x + next(rest) if f else x for x, f in zip(leaves, floating, strict=True)]
    )


@partial(jax.jit, static_argnames=("bridge", "plan"))
def objective_gradients(
    bridge: Bridge,
    plan: Plan,
    params: PyTree,
    frozen: FrozenModels,
    batch: Batch,
    step: Array,
) -> dict[str, Any]:
    """Gradient norms of every objective of a plan, weights aside, on one batch.

    Args:
        params: `{"bridge": ..., "heads": ...}`.
        step: of the stage, for what an objective has on a schedule of its own.

    Returns:
        [K] arrays in the plan's order: `bridge`, the norm by the bridge's parameters; `latent`, by
        the latent, whatever way it takes from there; `delivered`, by what the receivers are given;
        `loss`, the objectives themselves. And `seen`: means of the terms, and of what the
        objectives watch, by name.
    """

    def context_of(own: PyTree, at_latent: Array | None, at_given: Any) -> _Probed:
        return _Probed(
            bridge,
            own,
            frozen,
            batch,
            bridge.extract(frozen.sender, batch, own, frozen.receivers),
            jax.random.key(0),
            True,
            step=step,
            at_latent=at_latent,
            at_given=at_given,
        )

    def shapes(own: PyTree) -> Any:
        plain = context_of(own, None, {})
        return plain.latent.slots, {n: _floats(d) for n, d in plain.deliveries.items()}

    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(shapes, params["bridge"])
    )

    def losses(own: PyTree, at_latent: Array, at_given: Any) -> tuple[Array, Any]:
        context = context_of(own, at_latent, at_given)
        totals = {name: jnp.float32(0.0) for name, _ in plan.objectives}
        terms, watched = all_terms(plan, context, params["heads"])
        for (name, _), term in terms.items():
            totals[name] += mean(term) / len(bridge.dims.receivers)
        seen = {name: mean(term) for name, term in watched.items()}
        seen |= {name: mean(term) for (_, name), term in terms.items()}
        return jnp.stack(list(totals.values())), seen

    loss, pull, seen = jax.vjp(losses, params["bridge"], *zeros, has_aux=True)

    def norms(one: Array) -> tuple[Array, Array, Array]:
        by_bridge, by_latent, by_given = pull(one)
        return optax.tree.norm(by_bridge), optax.tree.norm(by_latent), optax.tree.norm(by_given)

    by_bridge, by_latent, by_given = jax.lax.map(norms, jnp.eye(len(plan.objectives)))
    norms_by = {"bridge": by_bridge, "latent": by_latent, "delivered": by_given}
    return norms_by | {"loss": loss, "seen": seen}
