"""Whether the gradient of a step reaches what the stage trains, from the traced program alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.paths import components
from lw_jax.errors import UserError
from lw_jax.train.plan import Plan
from lw_jax.types import PyTree

NORM = "grad_norm/"
"""Begins the names of metrics that are the norm of one component's gradient."""


def check_reach(
    steps: Iterable[tuple[Plan, jax.stages.Traced]], bridge: Bridge, trained: PyTree
) -> None:
    """Checks that the gradient reaches some part that a stage trains, in some of its steps.

    A gradient that reaches nothing is a constant zero in the program (`lw_jax.train.step`). One
    that is small, or zero on some rows, is another matter: it raises alarms.

    Args:
        steps: the stage's programs and their plans; those after the first that trains something are
            not asked for.
        bridge: what is trained.
        trained: True for every leaf of the parameters that the stage trains.

    Raises:
        UserError: no parameter would ever change but by weight decay.
    """
    parts = {"/".join(p): any(jax.tree.leaves(t)) for p, t in components(trained["bridge"])}
    wanted = {name for name, some in parts.items() if some}
    itself = bridge.trains_itself and parts.get("bottleneck")
    if itself or not wanted:  # of the objectives' heads alone
        return
    names: dict[str, None] = {}
    for plan, step in steps:
        if not wanted.isdisjoint(reached(step)):
            return
        names |= dict.fromkeys(name for name, _ in plan.objectives)
    raise UserError(
        f"no gradient of {', '.join(names) or 'an objective'} reaches what is trained "
        f"({', '.join(sorted(wanted))}), so nothing would be trained; "
        "set another objective, or other parts to train (train_only)"
    )


def reached(step: jax.stages.Traced) -> Iterator[str]:
    """Components of the bridge whose gradient in a traced step is not a constant zero."""
    program, (_, metrics) = step.jaxpr, step.out_info
    last = len(program.jaxpr.outvars) - len(jax.tree.leaves(metrics))
    for at, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(metrics), last):
        name: Any = path[0].key
        if name.startswith(NORM) and not _is_zero(program, at):
            yield name.removeprefix(NORM)


def _is_zero(program: ClosedJaxpr, at: int) -> bool:
    """Whether one result of a program depends on no argument, and is zero."""
    wanted = [i == at for i in range(len(program.jaxpr.outvars))]
    rest, used = dce_jaxpr(program.jaxpr, wanted)
    if any(used):
        return False
    (value,) = jax.jit(jaxpr_as_fun(ClosedJaxpr(rest, program.consts)))()
    return bool(value == 0)
