"""The jitted training step: latent once, objectives on it, gradients to the bridge alone.

Frozen trees are arguments, never donated and never differentiated; the bridge's state is donated.
One step is compiled for every (plan, shape).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.paths import components
from lw_jax.mesh import replicated, trained_shardings, ways
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.base import Term, mean
from lw_jax.objectives.common.context import Context
from lw_jax.train.config import TrainConfig
from lw_jax.train.microbatches import Counts, Seen, microbatched
from lw_jax.train.optimiser import learning_rate
from lw_jax.train.plan import Batch, LossTerms, Plan, all_terms, context_of
from lw_jax.train.state import TrainState, apply_gradients, keep_finite
from lw_jax.types import Array, PyTree

OVERLAPPED = {"xla_gpu_enable_latency_hiding_scheduler": True}
"""Of the compiler for GPUs: weights are put together while the layer before is computed."""


def make_step(
    cfg: TrainConfig,
    bridge: Bridge,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    plan: Plan,
    *,
    trained: PyTree = None,
    ratio: float | None = None,
) -> jax.stages.Wrapped:
    """The compiled step of a stage: `step(state, frozen, batch) -> (state, metrics)`.

    Args:
        cfg: the stage.
        bridge: what is trained.
        optimiser: of all parameters (`lw_jax.train.optimiser.make_optimiser`).
        mesh: on which the state lies as `lw_jax.mesh.RULES` says. The state is donated.
        plan: the step's objectives.
        trained: True for every leaf of the parameters that the stage trains; None: all are.
        ratio: source tokens a slot, of a bridge with several ratios; None: as it says.

    Raises:
        UserError: the bridge has no several ratios.
    """
    own = None if trained is None else jax.tree.leaves(trained["bridge"].get("bottleneck", {}))
    step = partial(
        train_step,
        plan=plan,
        cfg=cfg,
        bridge=bridge if ratio is None else bridge.at_ratio(ratio),
        optimiser=optimiser,
        codebook_trains=own is None or any(own),
    )
    # Left to itself, the partitioner would split the new state: the next step then compiles again,
    # and the donated buffers do not fit.
    if ways(mesh, "largest") == 1:
        return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))

    def in_pieces(state: TrainState, frozen: FrozenModels, batch: Batch) -> Any:
        constrain = jax.lax.with_sharding_constraint
        new, metrics = step(state, frozen, batch, everywhere=replicated(mesh))
        placed = constrain(new, trained_shardings(mesh, new))
        return placed, constrain(metrics, replicated(mesh))

    options = OVERLAPPED if mesh.devices.flat[0].platform in ("gpu", "cuda") else None
    return jax.jit(in_pieces, donate_argnums=0, compiler_options=options)


def train_step(
    state: TrainState,
    frozen: FrozenModels,
    batch: Batch,
    *,
    plan: Plan,
    cfg: TrainConfig,
    bridge: Bridge,
    optimiser: optax.GradientTransformation,
    codebook_trains: bool = True,
    everywhere: NamedSharding | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of training.

    Args:
        state: before the step.
        frozen: the frozen models.
        batch: of `lw_jax.text.collate`.
        plan: the step's objectives.
        cfg: the stage.
        bridge: what is trained.
        optimiser: of all parameters.
        codebook_trains: whether a bottleneck that moves parameters of its own may do so.
        everywhere: where parameters that lie in pieces are put together for the step; None: they
            do not.

    Returns:
        The state after the step, and what is logged of it; see `keep_finite` for a step that is
        not finite.
    """
    rng, at = state.step_rng(), state.step
    weights = {n: c.weight * c.schedule(at, cfg.steps) for n, c in plan.objectives}
    rising = {"latent_keep": cfg.latent_keep, "scheduled_sampling": cfg.scheduled_sampling}
    probabilities = {name: ramp(at) for name, ramp in rising.items() if ramp is not None}
    loss_fn = partial(
        _loss,
        plan=plan,
        bridge=bridge,
        frozen=frozen.rematerialised("full" if cfg.remat == "auto" else cfg.remat),
        weights=weights,
        probabilities=probabilities,
        step=at,
        shared_text=cfg.shared_text,
        together=cfg.together,
        sown=codebook_trains and bridge.trains_itself,
    )
    gradients = microbatched(loss_fn, cfg.accumulate)
    params = state.params
    if everywhere is not None:
        params = jax.lax.with_sharding_constraint(params, everywhere)
    (loss, seen), grads = gradients(params, batch, rng)
    new = apply_gradients(state, grads, optimiser, cfg.ema)
    if seen.intermediates:
        own = bridge.after_step(new.params["bridge"], seen.intermediates, rng)
        new = new.replace(params={**new.params, "bridge": own})  # type: ignore[attr-defined]
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    metrics["learning_rate"] = learning_rate(cfg.optimiser, cfg.steps, at)
    metrics |= probabilities
    for path, tree in components(grads["bridge"]):
        metrics[f"grad_norm/{'/'.join(path)}"] = optax.tree.norm(tree)
    for path, tree in components(state.params["bridge"]):
        if path[-1] == "lora":
            metrics[f"param_norm/{'/'.join(path)}"] = optax.tree.norm(tree)
    metrics |= shares(seen.terms, weights, loss, len(bridge.dims.receivers))
    metrics |= {name: mean(term) for name, term in seen.watched.items()}
    metrics["dropped"] = jnp.sum(~batch["valid"])
    return keep_finite(state, new, metrics)


def _loss(
    params: PyTree,
    batch: Batch,
    rng: Array,
    counts: Counts | None,
    *,
    plan: Plan,
    bridge: Bridge,
    frozen: FrozenModels,
    weights: Mapping[str, Array],
    probabilities: Mapping[str, Array],
    step: Array,
    shared_text: bool,
    together: int | None,
    sown: bool,
) -> tuple[Array, Seen]:
    """The weighted loss of a batch, a mean over the receivers.

    Args:
        params: `{"bridge": ..., "heads": ...}`.
        batch: of `lw_jax.text.collate`.
        rng: of the step.
        counts: by what the terms are divided; None: by their own.
        plan: the step's objectives.
        bridge: the bridge.
        frozen: the frozen models.
        weights: of the objectives.
        probabilities: `latent_keep` and `scheduled_sampling`, where the stage has them.
        step: of the stage.
        shared_text: see `Context`.
        together: tokens that all questions of a context have, where they are read together.
        sown: whether what the bridge's parts sowed is asked for.
    """
    own = params["bridge"]
    context = context_of(
        bridge,
        own,
        frozen,
        batch,
        rng,
        True,
        probabilities.get("latent_keep"),
        probabilities.get("scheduled_sampling"),
        step,
        shared_text,
        together,
    )
    terms, watched = all_terms(plan, context, params["heads"])
    watched |= _loudness(context, bridge.dims)
    loss = jnp.float32(0.0)
    for key, term in terms.items():
        count = term.count if counts is None else counts[key]
        loss += weights[key[0]] * term.total / jnp.maximum(1.0, count)
    # Only what is asked for leaves the trace: values of all microbatches take memory.
    intermediates = context.intermediates if sown and context.made else {}
    return loss / len(bridge.dims.receivers), Seen(terms, watched, intermediates)


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


def _loudness(context: Context, dims: BridgeDims) -> dict[str, Term]:
    """Of what is delivered: RMS over that of real embeddings, the RMS of single soft tokens (the
    least, the most, and their deviation over their mean), the learned scale over its start, and
    saturation (faults 7 and 10)."""
    found: dict[str, Term] = {}
    if not context.delivered:
        return found

    def add(name: str, value: Array) -> None:
        found[name] = Term(value, jnp.float32(1.0))

    for name, delivery in context.deliveries.items():
        if delivery.embeds is not None:
            x = jax.lax.stop_gradient(delivery.embeds).astype(jnp.float32)
            rms = dims.receivers[name].embed_rms
            add(f"{name}/rms_ratio", jnp.sqrt(jnp.mean(jnp.square(x))) / rms)
            each = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1)) / rms
            real = jnp.ones(each.shape, bool) if delivery.mask is None else delivery.mask
            add(f"{name}/token_rms/least", jnp.min(jnp.where(real, each, jnp.inf)))
            add(f"{name}/token_rms/most", jnp.max(jnp.where(real, each, 0.0)))
            count = jnp.maximum(1, jnp.sum(real))
            mean_rms = jnp.sum(each * real) / count
            spread = jnp.sqrt(jnp.sum(jnp.square(each - mean_rms) * real) / count)
            add(f"{name}/token_rms/spread", spread / jnp.maximum(mean_rms, 1e-12))
        for sown in context.reader_intermediates(name).values():
            for key in ("saturation", "scale"):
                if key in sown:
                    add(f"{name}/{key}", jax.lax.stop_gradient(sown[key]))
    return found
