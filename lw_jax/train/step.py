"""The jitted training step: latent once, objectives on it, gradients to the bridge alone.

Frozen trees are arguments, never donated and never differentiated; the bridge's state is donated.
One step is compiled for every (plan, shape): the plan is the set of objectives whose weight can be
non-zero, so a delayed start is another plan, not a branch.
"""

from __future__ import annotations

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
from lw_jax.errors import UserError
from lw_jax.layers.intermediates import Intermediates
from lw_jax.mesh import replicated
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.base import (
    Objective,
    Term,
    check_contract,
    checked_terms,
    mean,
    naming,
)
from lw_jax.objectives.common.context import Context
from lw_jax.train.state import TrainState, apply_gradients
from lw_jax.types import Array, PyTree
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import BatchKind

Batch = dict[str, Array]
LossTerms = dict[tuple[str, str], Term]
"""Terms of the loss by (objective, `<receiver>/<term>`)."""
Watched = dict[str, Term]
"""What is logged and is no part of the loss, by `<receiver>/<name>`."""
Seen = tuple[LossTerms, Watched, Intermediates]
"""Of a microbatch: both, and what the parts sowed if one of them moves itself."""

COSINE = "reconstruction_cosine"
"""Name of `Terms.cosine` in the log."""


@dataclass(frozen=True)
class Plan:
    """What is static in a step besides the shapes.

    Attributes:
        objectives: name and config of those whose weight can be non-zero, in order of name.
    """

    objectives: tuple[tuple[str, Objective], ...]


def plan_at(objectives: Any, step: int, kind: BatchKind = "latent") -> Plan:
    """The plan of a step (0-based) of a kind."""
    named = sorted(chosen(objectives).items())
    return Plan(tuple((n, c) for n, c in named if c.schedule.active(step, kind)))


def init_heads(objectives: Any, dims: BridgeDims, rng: Array) -> dict[str, PyTree]:
    """Fresh parameters of the objectives that have heads of their own, by the objective's name.

    Raises:
        UserError: an objective does not keep its contract, or does not suit the bridge.
    """
    heads = {}
    for i, (name, config) in enumerate(sorted(chosen(objectives).items())):
        check_contract(name, config)
        with naming(name, config):
            own = config.init(dims, jax.random.fold_in(rng, i))
        if own is not None:
            heads[name] = own
    return heads


def context_of(
    bridge: Bridge,
    params: PyTree,
    frozen: FrozenModels,
    batch: Batch,
    rng: Array,
    train: bool,
    latent_keep: Array | None = None,
    scheduled_sampling: Array | None = None,
) -> Context:
    """What the objectives see of a batch.

    Args:
        bridge: the bridge.
        params: its parameters.
        frozen: the frozen models.
        batch: of `lw_jax.text.collate`.
        rng: the objectives'.
        train: whether dropout is on.
        latent_keep: see `Context`.
        scheduled_sampling: see `Context`.
    """
    return Context(
        bridge,
        params,
        frozen,
        batch,
        bridge.extract(frozen.sender, batch, params),
        rng,
        train,
        latent_keep=latent_keep,
        scheduled_sampling=scheduled_sampling,
    )


def all_terms(
    plan: Plan, context: Context, heads: Mapping[str, PyTree]
) -> tuple[LossTerms, Watched]:
    """Every objective's terms for every receiver.

    Args:
        plan: which objectives.
        context: what they see.
        heads: parameters of their heads, by the objective's name.

    Raises:
        UserError: an objective does not keep its contract, or does not suit the bridge; a weight
            is gated on a reconstruction's cosine, and no objective of the plan reconstructs.
    """
    loss: LossTerms = {}
    watched: Watched = {}
    cosines: dict[str, Term] = {}
    for name, config in plan.objectives:
        check_contract(name, config)
        own = context.with_heads(heads.get(name))
        for receiver in context.dims.receivers:
            with naming(name, config):
                found = checked_terms(name, config.terms(own, receiver))
            terms = found.loss if isinstance(found.loss, Mapping) else {"": found.loss}
            for suffix, term in terms.items():
                loss[name, f"{receiver}/{name}_{suffix}" if suffix else f"{receiver}/{name}"] = term
            watched |= {f"{receiver}/{key}": term for key, term in found.watched.items()}
            if found.cosine is not None:
                watched[f"{receiver}/{COSINE}"] = cosines[receiver] = found.cosine
            if found.shuffled is not None:
                watched[f"{receiver}/{name}/shuffled"] = found.shuffled
    for name, config in plan.objectives:
        if config.schedule.gate is None:
            continue
        for receiver in context.dims.receivers:
            with naming(name, config):
                opened = gate(cosines.get(receiver), config.schedule.gate)
            watched[f"{receiver}/gate/{name}"] = Term(opened, jnp.float32(1.0))
            for key, term in loss.items():
                if key[0] == name and key[1].startswith(f"{receiver}/"):
                    loss[key] = Term(term.total * opened, term.count)
    return loss, watched


def gate(cosine: Term | None, above: float) -> Array:
    """1 while a batch's reconstruction cosine is above a threshold, else 0; no gradient goes
    through it (docs/design.md section 6). With microbatches each has its own gate.

    Raises:
        UserError: there is no cosine.
    """
    if cosine is None:
        raise UserError(
            "schedule.gate: nothing measures a reconstruction cosine; "
            "set objectives.cosine_reconstruction or objectives.reconstruction as well"
        )
    return (jax.lax.stop_gradient(mean(cosine)) > above).astype(jnp.float32)


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
            own = params["bridge"]
            context = context_of(self.bridge, own, frozen, part, key, True, keep, sampled)
            terms, watched = all_terms(plan, context, params["heads"])
            watched |= _loudness(context, self.bridge.dims)
            # Only what is asked for leaves the trace: values of all microbatches take memory.
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
    terms: LossTerms, weights: Mapping[str, Array], loss: Array, receivers: int
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
