"""Which objectives a step has, and what they give.

A plan is the set of objectives whose weight can be non-zero: a delayed start is another plan, not a
branch in the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lw_jax.bridge.bridge import Bridge
from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.objectives.base import (
    Objective,
    Term,
    checked_terms,
    mean,
    naming,
)
from lw_jax.objectives.common.context import Context
from lw_jax.receiver.read import fitting
from lw_jax.types import Array, PyTree
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import BatchKind, Schedule

Batch = dict[str, Array]
LossTerms = dict[tuple[str, str], Term]
"""Terms of the loss by (objective, `<receiver>/<term>`)."""
Watched = dict[str, Term]
"""What is logged and is no part of the loss, by `<receiver>/<name>`."""

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
        UserError: an objective does not suit the bridge.
    """
    heads = {}
    for i, (name, config) in enumerate(sorted(chosen(objectives).items())):
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
    step: Array | None = None,
    shared_text: bool = False,
    together: int | None = None,
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
        step: see `Context`.
        shared_text: see `Context`.
        together: see `Context`.
    """
    views = bridge.extract(frozen.sender, batch, params, frozen.receivers)
    if together is not None:
        batch = batch | {"valid": batch["valid"] & _find_room(batch, frozen, together)}
    return Context(
        bridge,
        params,
        frozen,
        batch,
        views,
        rng,
        train,
        latent_keep=latent_keep,
        scheduled_sampling=scheduled_sampling,
        step=step,
        shared_text=shared_text,
        together=together,
    )


def _find_room(batch: Batch, frozen: FrozenModels, together: int) -> Array:
    """[N] bool: questions that every receiver reads behind one copy of the message."""
    found = []
    for name in frozen.receivers:
        ask, answer = (batch[f"{name}/{part}/lengths"] for part in ("ask", "answer"))
        questions = ask.shape[0] // batch[f"{name}/context/lengths"].shape[0]
        found.append(fitting(ask, answer, questions, together))
    return jnp.stack(found).all(axis=0)


def all_terms(
    plan: Plan, context: Context, heads: Mapping[str, PyTree]
) -> tuple[LossTerms, Watched]:
    """Every objective's terms for every receiver.

    Args:
        plan: which objectives.
        context: what they see.
        heads: parameters of their heads, by the objective's name.

    Returns:
        The terms of the loss, and what is watched.

    Raises:
        UserError: an objective does not keep its contract, or does not suit the bridge; a weight
            is gated on a reconstruction's cosine, and no objective of the plan reconstructs.
    """
    loss: LossTerms = {}
    watched: Watched = {}
    cosines: dict[str, Term] = {}
    taus = [tau for _, c in plan.objectives if (tau := c.teacher_tau()) is not None]
    context = replace(context, tau=taus[0] if taus else None)
    for name, config in plan.objectives:
        own = context.with_heads(heads.get(name))
        for receiver in context.dims.receivers:
            with naming(name, config):
                found = checked_terms(name, config.terms(own, receiver))
            terms = found.loss if isinstance(found.loss, Mapping) else {"": found.loss}
            for suffix, term in terms.items():
                loss[name, f"{receiver}/{name}_{suffix}" if suffix else f"{receiver}/{name}"] = term
            watched |= {f"{receiver}/{key}": term for key, term in found.watched.items()}
            if found.cosine is not None and receiver not in cosines:
                watched[f"{receiver}/{COSINE}"] = cosines[receiver] = found.cosine
            if found.shuffled is not None:
                watched[f"{receiver}/{name}/shuffled"] = found.shuffled
    for name, config in plan.objectives:
        if not config.schedule.by_cosine:
            continue
        for receiver in context.dims.receivers:
            with naming(name, config):
                factor = gate(cosines.get(receiver), config.schedule)
            watched[f"{receiver}/gate/{name}"] = Term(factor, jnp.float32(1.0))
            for key, term in loss.items():
                if key[0] == name and key[1].startswith(f"{receiver}/"):
                    loss[key] = Term(term.total * factor, term.count)
    return loss, watched


def gate(cosine: Term | None, schedule: Schedule) -> Array:
    """The factor that a batch's reconstruction cosine puts on an objective: 0 unless it is above
    `gate`, a half where it is below `halve`, else 1; no gradient goes through it (docs/design.md
    section 6). With microbatches each has its own.

    Raises:
        UserError: there is no cosine.
    """
    if cosine is None:
        option = "halve" if schedule.gate is None else "gate"
        raise UserError(
            f"schedule.{option}: nothing measures a reconstruction cosine; "
            "set an objective that reconstructs the source as well"
        )
    measured, factor = jax.lax.stop_gradient(mean(cosine)), jnp.float32(1.0)
    if schedule.gate is not None:
        factor *= (measured > schedule.gate).astype(jnp.float32)
    if schedule.halve is not None:
        factor *= jnp.where(measured < schedule.halve, 0.5, 1.0)
    return factor
