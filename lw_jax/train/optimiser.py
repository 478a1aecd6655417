"""The optax chain of a stage, and the covering rule that gives every leaf its group.

Muon orthogonalises the update of a matrix, so it must know which axes of a stacked leaf are the
matrix: everything that is not a reduction or an output axis is a batch of matrices, each
orthogonalised alone (Jordan 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.paths import readable
from lw_jax.errors import UserError
from lw_jax.train.config import TrainConfig
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.types import Array, PyTree
from lw_jax.utils.registry import chosen

Group = Literal["muon", "adam"]

AXES: Mapping[str, MuonDimensionNumbers | None] = {
    "matrix": MuonDimensionNumbers((-2,), (-1,)),  # [..., in, out]
    "heads_out": MuonDimensionNumbers((-3,), (-2, -1)),  # [..., D, H, h]
    "heads_in": MuonDimensionNumbers((-3, -2), (-1,)),  # [..., H, h, D]
    "adam": None,  # no matrix, whatever its rank
}
"""Which axes of a leaf are the matrix; those before them are a batch of matrices."""

FIXED = r"(^|/)statistics/"
"""Measured, not trained: these leaves travel with the parameters, and no step moves them."""


@dataclass(frozen=True)
class Rule:
    """Which axes the leaves of some name have.

    Attributes:
        pattern: regular expression on the path below `part`.
        axes: a name in `AXES`.
        part: path of the part of the parameters that the rule is for; "" for all.
    """

    pattern: str
    axes: str
    part: str = ""

    def covers(self, path: str) -> bool:
        """Whether the rule is for the leaf at a path."""
        before = f"{self.part}/" if self.part else ""
        return path.startswith(before) and bool(re.search(self.pattern, path[len(before) :]))


RULES: tuple[Rule, ...] = (
    # frozen-decoder trees: leaves stacked over layers
    Rule(r"(^|/)layers/[qkv]$", "heads_out"),
    Rule(r"(^|/)layers/o$", "heads_in"),
    Rule(r"(^|/)layers/(gate|up|down)$", "matrix"),
    Rule(r"(^|/)(embed|head)$", "adam"),
    Rule(r"(^|/)(\w+_)?norm$", "adam"),
    # linen trees: attention kernels carry their head axes, other kernels are [..., in, out]
    Rule(r"(^|/)(query|key|value)/kernel$", "heads_out"),
    Rule(r"(^|/)(out)/kernel$", "heads_in"),
    Rule(r"(^|/)heads/[kv]$", "heads_out"),  # per-layer key and value heads of a reader
    Rule(r"(^|/)[qkvo]_(down|up)$", "matrix"),  # low-rank edits, stacked over layers
    Rule(r"(^|/)(\w+_)?kernel$", "matrix"),
    # what is learned but is no matrix, whatever its rank (stacked over layers, say)
    Rule(r"(^|/)(\w+_)?(bias|scale|gain|gates?|mix|log_\w+)$", "adam"),
    Rule(r"(^|/)(\w+_)?(queries|positions?|embeddings?|tokens|codebook|colou?r)$", "adam"),
)
"""The first that covers a leaf decides. A leaf of two axes that none covers is a matrix."""


def rules_of(bridge: Bridge, objectives: Any = None) -> tuple[Rule, ...]:
    """The rules that the bridge's parts, and objectives with heads, have for their own leaves.

    Raises:
        UserError: a rule names axes that there are not, or its pattern is none.
    """
    found = []
    for part, options in _parts(bridge, objectives):
        for pattern, axes in options.optimizer_rules.items():
            where = f"optimizer_rules of {part}"
            if axes not in AXES:
                known = ", ".join(AXES)
                raise UserError(f"{where}: {pattern!r} has {axes!r}; expected one of {known}")
            _compiled(pattern, where)
            found.append(Rule(pattern, axes, part))
    return tuple(found)


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A pattern of the user's.

    Raises:
        UserError: it is no regular expression; where: it stands.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None


def _parts(bridge: Bridge, objectives: Any) -> Iterator[tuple[str, Any]]:
    """The options of every part of a bridge, and of every objective, by the path of its leaves."""
    config = bridge.config
    for view, source in config.views.items():
        yield f"bridge/sources/{view}" if config.sources else "bridge/source", source
    yield "bridge/compressor", config.chosen_compressor
    if config.chosen_bottleneck is not None:
        yield "bridge/bottleneck", config.chosen_bottleneck
    for receiver in bridge.dims.receivers:
        for name, reader in chosen(config.reader).items():
            yield f"bridge/readers/{receiver}/{name}", reader
    if objectives is not None:
        for name, objective in chosen(objectives).items():
            yield f"heads/{name}", objective


def path_of(path: tuple[object, ...]) -> str:
    """`a/b/c` of a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(path: str, leaf: Array, rules: Sequence[Rule]) -> str | None:
    """The name in `AXES` of a leaf; None if it has more than two axes and no rule covers it."""
    if leaf.ndim < 2 or re.search(FIXED, path):
        return "adam"
    for rule in (*rules, *RULES):
        if rule.covers(path):
            # Two axes: a projection without separate head axes.
            return "matrix" if rule.axes != "adam" and leaf.ndim == 2 else rule.axes
    return "matrix" if leaf.ndim == 2 else None


def _axes(path: str, leaf: Array, rules: Sequence[Rule]) -> MuonDimensionNumbers | None:
    """The axes of a leaf's matrix, None if it is none.

    Raises:
        UserError: it has more axes than a matrix, and no rule covers it.
    """
    name = _named(path, leaf, rules)
    if name is None:
        raise UserError(
            f"optimiser: no rule covers the parameter {path} {tuple(leaf.shape)}, which may be a "
            "stack of matrices or have head axes; name it in optimizer_rules of its Config, as in "
            f"{{{path.rpartition('/')[2]!r}: 'matrix'}}, one of {', '.join(AXES)}"
        )
    return AXES[name]


def dimension_numbers(params: PyTree, rules: Sequence[Rule] = ()) -> PyTree:
    """`MuonDimensionNumbers` for each matrix, None for each leaf of Adam; like `params`."""
    return jax.tree_util.tree_map_with_path(lambda p, x: _axes(path_of(p), x, rules), params)


def groups(params: PyTree, rules: Sequence[Rule] = ()) -> Mapping[str, Group]:
    """The group of every leaf by path.

    Args:
        params: the parameters (arrays or shapes).
        rules: of their own parts (`rules_of`).

    Raises:
        UserError: no rule covers a leaf that may be one thing or another.
    """
    found: dict[str, Group] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = _axes(path_of(path), leaf, rules)
        found[path_of(path)] = "adam" if axes is None else "muon"
    return found


def learning_rate(cfg: OptimiserConfig, steps: int, step: Array | int) -> Array:
    """`cfg.lr` as scheduled for one step of a stage of `steps`, float32 scalar."""
    return jnp.float32(cfg.lr) * cfg.schedule(step, steps)


def make_optimiser(
    cfg: OptimiserConfig,
    params: PyTree,
    steps: int,
    trained: PyTree = None,
    rules: Sequence[Rule] = (),
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon + Adam, with the schedule over `steps`.

    Adam has Nesterov momentum too where it goes with Muon (Dozat 2016). Leaves that are not trained
    have no moments, and their gradients are not in the norm that is clipped.

    Args:
        cfg: the optimiser; rates are peaks, multiplied by `cfg.schedule`.
        params: the parameters (arrays or shapes); decides the groups.
        steps: optimiser steps of the stage.
        trained: True for every leaf that is trained; None: all are, but what was measured.
        rules: of the parameters' own parts (`rules_of`).

    Raises:
        UserError: no rule covers a leaf that may be one thing or another.
    """
    labels = jax.tree_util.tree_map_with_path(
        lambda p, _: "fixed" if re.search(FIXED, path_of(p)) else "trained", params
    )
    if trained is not None:
        labels = jax.tree.map(lambda a, b: a if b else "fixed", labels, trained)
    if all(label == "trained" for label in jax.tree.leaves(labels)):
        return _chain(cfg, params, steps, rules)
    own = jax.tree.map(lambda x, a: x if a == "trained" else optax.MaskedNode(), params, labels)
    transforms = {"trained": _chain(cfg, own, steps, rules), "fixed": optax.set_to_zero()}
    return optax.partition(transforms, labels)


def _chain(
    cfg: OptimiserConfig, params: PyTree, steps: int, rules: Sequence[Rule]
) -> optax.GradientTransformation:
    """The chain of the trained leaves; in the place of others stand `optax.MaskedNode`s."""

    def rate(peak: float) -> optax.Schedule:
        return lambda step: learning_rate(replace(cfg, lr=peak), steps, step)

    if cfg.name == "muon":
        adam_lr = cfg.lr / 5 if cfg.adam_lr is None else cfg.adam_lr
        inner = muon(
            rate(cfg.lr),
            weight_decay=cfg.weight_decay,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            adam_learning_rate=rate(adam_lr),
            muon_weight_dimension_numbers=dimension_numbers(params, rules),
        )
    else:
        inner = optax.adamw(
            rate(cfg.lr),
            b1=cfg.b1,
            b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            mask=_decayed(params, rules, bool(cfg.weight_decay)),
        )
    clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
    return optax.chain(clip, inner)


def _decayed(params: PyTree, rules: Sequence[Rule], some: bool) -> PyTree:
    """True for every matrix; like `params`. some: whether there is weight decay at all; without,
    every leaf may be left without a rule."""

    def decays(path: str, leaf: Array) -> bool:
        if some:
            return _axes(path, leaf, rules) is not None
        return _named(path, leaf, rules) not in (None, "adam")

    return jax.tree_util.tree_map_with_path(lambda p, x: decays(path_of(p), x), params)


def stage_optimiser(
    cfg: TrainConfig, bridge: Bridge, objectives: Any, params: PyTree
) -> tuple[optax.GradientTransformation, PyTree]:
    """The optimiser of a stage that trains a bridge.

    Args:
        cfg: the stage.
        bridge: what is trained.
        objectives: the stage's.
        params: `{"bridge": ..., "heads": ...}`, arrays or shapes.

    Returns:
        The optimiser of all parameters, and a tree like them, True for every leaf that is trained.

    Raises:
        UserError: `train_only` matches no parameter; no rule covers a leaf.
    """
    trained = trained_leaves(params, cfg.train_only, bridge.dims.receivers)
    rules = rules_of(bridge, objectives)
    return make_optimiser(cfg.optimiser, params, cfg.steps, trained, rules), trained


def trained_leaves(params: PyTree, train_only: Sequence[str], receivers: Iterable[str]) -> PyTree:
    """True for every leaf that a stage trains; like `params`.

    Args:
        params: the parameters (arrays or shapes).
        train_only: regular expressions, each for one or more whole names of a path (`readers/qwen`
            is not `readers/qwen2`); empty: all leaves are trained.
        receivers: their names; linen's names of readers (`readers_qwen_lora`) are understood.

    Raises:
        UserError: a pattern is no regular expression, or matches no parameter.
    """
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = []
    for given in train_only:
        _compiled(given, "train_only")
        whole = readable(given, receivers).strip("/")
        patterns.append(re.compile(rf"(^|/)({whole})(/|$)"))
        if not any(patterns[-1].search(path) for path in paths):
            parts = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
            raise UserError(f"train_only: {given!r} matches no parameter; there are {parts}")
    return jax.tree_util.tree_map_with_path(
        lambda p, _: not patterns or any(x.search(path_of(p)) for x in patterns), params
    )
