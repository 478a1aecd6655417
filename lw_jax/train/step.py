"""The jitted training step: latent once, objectives on it, gradients to the bridge alone.

Frozen trees are arguments, never donated and never differentiated; the bridge's state is donated.
One step is compiled for every (plan, shape): the plan is the set of objectives whose weight can be
non-zero, so a delayed start is another plan, not a branch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.paths import components
from lw_jax.layers.intermediates import Intermediates
from lw_jax.mesh import replicated
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.base import Term, mean
from lw_jax.objectives.context import Context, gated
from lw_jax.train.state import TrainState, apply_gradients
from lw_jax.types import Array, PyTree
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import BatchKind

Batch = dict[str, Array]
Terms = dict[tuple[str, str], Term]
"""Terms by (objective, `<receiver>/<term>`)."""
Seen = tuple[Terms, dict[str, Term], Intermediates]
"""Of a microbatch: terms, watched terms, and what the parts noted if one of them moves itself."""


@dataclass(frozen=True)
class Plan:
    """What is static in a step besides the shapes.

    objectives: name and config of those whose weight can be non-zero, in order of name.
    """

    objectives: tuple[tuple[str, Any], ...]


def plan_at(objectives: Any, step: int, kind: BatchKind = "latent") -> Plan:
    """The plan of a step (0-based) of a kind."""
    named = sorted(chosen(objectives).items())
    return Plan(tuple((n, c) for n, c in named if c.schedule.active(step, kind)))


def objective(name: str) -> Any:
    """An objective's module."""
    return importlib.import_module(f"lw_jax.objectives.{name}")


def init_heads(objectives: Any, dims: BridgeDims, rng: Array) -> dict[str, PyTree]:
    """Fresh parameters of the objectives that have heads of their own."""
    heads = {}
    for i, (name, config) in enumerate(sorted(chosen(objectives).items())):
        if hasattr(objective(name), "init"):
            heads[name] = objective(name).init(config, dims, jax.random.fold_in(rng, i))
    return heads


def context_of(
    bridge: Bridge, params: PyTree, frozen: FrozenModels, batch: Batch, rng: Array, train: bool
) -> Context:
    """What the objectives see of a batch.

    Args:
        params: `{"bridge": ..., "heads": ...}`.
    """
    own = params["bridge"]
    views = bridge.extract(frozen.sender, batch, own)
    return Context(bridge, own, frozen, batch, views, rng, train, params.get("heads", {}))


def all_terms(plan: Plan, context: Context) -> Terms:
    """Every objective's terms for every receiver."""
    found: Terms = {}
    for name, config in plan.objectives:
        for receiver in context.dims.receivers:
            for term, value in objective(name).terms(config, context, receiver).items():
                found[name, f"{receiver}/{term}"] = value
    gates = {name: config.schedule.gate for name, config in plan.objectives}
    for (name, term), value in found.items():
        above = gates[name]
        if above is not None:
            found[name, term] = gated(value, context, term.split("/")[0], name, above)
    return found


def split_batch(batch: Batch, parts: int) -> Batch:
    """[parts * n, ...] -> [parts, n, ...]: microbatches of whole contexts."""
    return {k: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for k, x in batch.items()}


@dataclass(frozen=True)
class StepMaker:
    """Makes the compiled step of a plan.

    steps: of the stage (schedules run over them); mesh: the state is replicated on it; accumulate:
    microbatches; ema: decay or None; moves: whether the bottleneck may move its own parameters;
    rate: the learning rate of a step, for the log; keep: the probability of a slot to be kept at a
    step (latent dropout); sampled: that of a gold answer token to give way to the receiver's own
    (scheduled sampling).
    """

    bridge: Bridge
    optimiser: optax.GradientTransformation
    steps: int
    mesh: Mesh
    accumulate: int = 1
    ema: float | None = None
    moves: bool = True
    rate: Callable[[Array], Array] | None = None
    keep: Callable[[Array], Array] | None = None
    sampled: Callable[[Array], Array] | None = None

    def make(self, plan: Plan) -> jax.stages.Wrapped:
        """`step(state, parties, batch) -> (state, metrics)`; the state is donated."""
        # Left to itself, the partitioner would split the new state: the next step then compiles
        # again, and the donated buffers do not fit.
        where = replicated(self.mesh)
        return jax.jit(partial(self._step, plan), donate_argnums=0, out_shardings=where)

    def _step(
        self, plan: Plan, state: TrainState, frozen: FrozenModels, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        rng = state.step_rng()
        keep = None if self.keep is None else self.keep(state.step)
        sampled = None if self.sampled is None else self.sampled(state.step)
        weights = {
            name: config.weight * config.schedule(state.step, self.steps)
            for name, config in plan.objectives
        }

        def terms_of(params: PyTree, part: Batch, key: Array) -> Seen:
            context = context_of(self.bridge, params, frozen, part, key, True)
            context.keep, context.sampled = keep, sampled
            terms = all_terms(plan, context)
            watched = context.watched | _loudness(context, self.bridge.dims)
            # Only what is asked for leaves the trace: notes of all microbatches take memory.
            asked = self.moves and self.bridge.trains_itself and context.made
            return terms, watched, context.intermediates if asked else {}

        def loss_of(
            params: PyTree, part: Batch, key: Array, counts: Mapping[Any, Array] | None
        ) -> tuple[Array, Seen]:
            terms, watched, intermediates = terms_of(params, part, key)
            loss = jnp.float32(0.0)
            for k, term in terms.items():
                count = term.count if counts is None else counts[k]
                loss += weights[k[0]] * term.total / jnp.maximum(1.0, count)
            return loss / len(self.bridge.dims.receivers), (terms, watched, intermediates)

        grad_of = jax.value_and_grad(loss_of, has_aux=True)
        if self.accumulate == 1:
            (loss, (terms, watched, intermediates)), grads = grad_of(state.params, batch, rng, None)
        else:
            parts = split_batch(batch, self.accumulate), jax.random.split(rng, self.accumulate)

            def counts_of(part: tuple[Batch, Array]) -> dict[Any, Array]:
                # Counts depend on masks alone: the model's part of this trace is dead code.
                return {k: t.count for k, t in terms_of(state.params, *part)[0].items()}

            counts = jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(counts_of, parts))

            def sums_of(part: tuple[Batch, Array]) -> tuple[Any, Intermediates]:
                (loss, (terms, watched, intermediates)), grads = grad_of(
                    state.params, *part, counts
                )
                return (loss, terms, watched, grads), intermediates

            def one(carry: Any, part: tuple[Batch, Array]) -> tuple[Any, Intermediates]:
                sums, intermediates = sums_of(part)
                return jax.tree.map(jnp.add, carry, sums), intermediates

            first = jax.tree.map(lambda x: x[0], parts)
            shapes, _ = jax.eval_shape(sums_of, first)
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (loss, terms, watched, grads), stacked = jax.lax.scan(one, zero, parts)
            intermediates = jax.tree.map(_whole_batch, stacked)
        new = apply_gradients(state, grads, self.optimiser, self.ema)
        if intermediates:
            own = self.bridge.after_step(new.params["bridge"], intermediates, rng)
            new = new.replace(params={**new.params, "bridge": own})  # type: ignore[attr-defined]
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if self.rate is not None:
            metrics["learning_rate"] = self.rate(state.step)
        if keep is not None:
            metrics["latent_keep"] = keep
        if sampled is not None:
            metrics["scheduled_sampling"] = sampled
        for path, tree in components(grads["bridge"]):
            metrics[f"grad_norm/{'/'.join(path)}"] = optax.tree.norm(tree)
        metrics |= shares(terms, weights, loss, len(self.bridge.dims.receivers))
        metrics |= {name: mean(term) for name, term in watched.items()}
        metrics["dropped"] = jnp.sum(~batch["valid"])
        return new, metrics


def shares(
    terms: Terms, weights: Mapping[str, Array], loss: Array, receivers: int
) -> dict[str, Array]:
    """Per term its mean, and per objective its weighted share of the loss.

    See docs/design.md section 6.
    """
    metrics: dict[str, Array] = {}
    for (name, term), value in terms.items():
        metrics[f"loss/{term}"] = mean(value)
        part = weights[name] * mean(value) / receivers / jnp.where(loss == 0, 1.0, loss)
        metrics[f"share/{name}"] = metrics.get(f"share/{name}", jnp.float32(0.0)) + part
    return metrics


def _whole_batch(x: Array) -> Array:
    """[parts, n, ...] of the microbatches -> [parts * n, ...]; [parts] -> the mean."""
    return jnp.mean(x) if x.ndim == 1 else x.reshape(-1, *x.shape[2:])


def _loudness(context: Context, dims: BridgeDims) -> dict[str, Term]:
    """RMS of what is delivered over that of real embeddings, and saturation (faults 7 and 10)."""
    found: dict[str, Term] = {}
    if not context.delivered:
        return found
    for name, delivery in context.deliveries.items():
        if delivery.embeds is not None:
            x = jax.lax.stop_gradient(delivery.embeds).astype(jnp.float32)
            ratio = jnp.sqrt(jnp.mean(jnp.square(x))) / dims.receivers[name].embed_rms
            found[f"{name}/rms_ratio"] = Term(ratio, jnp.float32(1.0))
        for sown in context.reader_intermediates(name).values():
            if "saturation" in sown:
                found[f"{name}/saturation"] = Term(sown["saturation"], jnp.float32(1.0))
    return found
