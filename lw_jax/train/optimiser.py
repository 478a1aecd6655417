"""The optax chain of a stage, and the covering rule that gives every leaf its group.

Muon orthogonalises the update of a matrix, so it must know which axes of a stacked leaf are the
matrix: everything that is not a reduction or an output axis is a batch of matrices, each
orthogonalised alone (Jordan 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lw_jax.bridge.paths import readable
from lw_jax.errors import UserError
from lw_jax.train.optimiser_config import OptimiserConfig
from lw_jax.types import Array, PyTree

Group = Literal["muon", "adam"]

_HEADS_OUT = MuonDimensionNumbers((-3,), (-2, -1))  # [..., D, H, h]
_HEADS_IN = MuonDimensionNumbers((-3, -2), (-1,))  # [..., H, h, D]
_MATRIX = MuonDimensionNumbers((-2,), (-1,))  # [..., in, out]

FIXED = r"(^|/)statistics/"
"""Measured, not trained: these leaves travel with the parameters, and no step moves them."""

RULES: tuple[tuple[str, MuonDimensionNumbers | None], ...] = (
    (FIXED, None),
    # frozen-decoder trees: leaves stacked over layers
    (r"(^|/)layers/[qkv]$", _HEADS_OUT),
    (r"(^|/)layers/o$", _HEADS_IN),
    (r"(^|/)layers/(gate|up|down)$", _MATRIX),
    (r"(^|/)(embed|head)$", None),
    (r"(^|/)(\w+_)?norm$", None),
    # linen trees: attention kernels carry their head axes, other kernels are [..., in, out]
    (r"(^|/)(query|key|value)/kernel$", _HEADS_OUT),
    (r"(^|/)(out)/kernel$", _HEADS_IN),
    (r"(^|/)heads/[kv]$", _HEADS_OUT),  # per-layer key and value heads of a reader
    (r"(^|/)[qkvo]_(down|up)$", _MATRIX),  # low-rank edits, stacked over layers
    (r"(^|/)(\w+_)?kernel$", _MATRIX),
    # what is learned but is no matrix, whatever its rank (stacked over layers, say)
    (r"(^|/)(\w+_)?(bias|scale|gain|gates?|mix|log_\w+)$", None),
    (r"(^|/)(\w+_)?(queries|positions?|embeddings?|tokens|codebook|colou?r)$", None),
)
"""(regular expression on the path, axes of the matrix or None for Adam), first match decides."""


def path_of(path: tuple[object, ...]) -> str:
    """`a/b/c` of a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes(path: str, leaf: Array) -> MuonDimensionNumbers | None:
    if leaf.ndim < 2:
        return None
    for pattern, axes in RULES:
        if re.search(pattern, path):
            if axes is None:
                return None
            if leaf.ndim == 2:  # a projection without separate head axes
                return _MATRIX
            return axes
    raise ValueError(
        f"optimiser: no rule covers the parameter {path!r} {tuple(leaf.shape)}; "
        "add one to lw_jax/train/optimiser.py RULES"
    )


def dimension_numbers(params: PyTree) -> PyTree:
    """`MuonDimensionNumbers` for each matrix, None for each leaf of Adam; like `params`."""
    return jax.tree_util.tree_map_with_path(lambda p, x: _axes(path_of(p), x), params)


def groups(params: PyTree) -> Mapping[str, Group]:
    """The group of every leaf by path. ValueError for a leaf that no rule covers."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(p): "adam" if _axes(path_of(p), x) is None else "muon" for p, x in leaves}


def learning_rate(cfg: OptimiserConfig, steps: int, step: Array | int) -> Array:
    """`cfg.lr` as scheduled for one step of a stage of `steps`, float32 scalar."""
    return jnp.float32(cfg.lr) * cfg.schedule(step, steps)


def make_optimiser(
    cfg: OptimiserConfig, params: PyTree, steps: int, trained: PyTree = None
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon + Adam, with the schedule over `steps`.

    Adam has Nesterov momentum too where it goes with Muon (Dozat 2016). Leaves that are not trained
    have no moments, and their gradients are not in the norm that is clipped.

    Args:
        cfg: the optimiser; rates are peaks, multiplied by `cfg.schedule`.
        params: the parameters (arrays or shapes); decides the groups.
        steps: optimiser steps of the stage.
        trained: True for every leaf that is trained; None: all are, but what was measured.
    """
    labels = jax.tree_util.tree_map_with_path(
        lambda p, _: "fixed" if re.search(FIXED, path_of(p)) else "trained", params
    )
    if trained is not None:
        labels = jax.tree.map(lambda a, b: a if b else "fixed", labels, trained)
    if all(label == "trained" for label in jax.tree.leaves(labels)):
        return _chain(cfg, params, steps)
    own = jax.tree.map(lambda x, a: x if a == "trained" else optax.MaskedNode(), params, labels)
    transforms = {"trained": _chain(cfg, own, steps), "fixed": optax.set_to_zero()}
    return optax.partition(transforms, labels)


def _chain(cfg: OptimiserConfig, params: PyTree, steps: int) -> optax.GradientTransformation:
    """The chain of the trained leaves; in the place of others stand `optax.MaskedNode`s."""
    axes = dimension_numbers(params)
    matrices = jax.tree_util.tree_map_with_path(
        lambda p, x: _axes(path_of(p), x) is not None, params
    )

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
            muon_weight_dimension_numbers=axes,
        )
    else:
        inner = optax.adamw(
            rate(cfg.lr),
            b1=cfg.b1,
            b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            mask=matrices,
        )
    clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
    return optax.chain(clip, inner)


def trained_leaves(params: PyTree, train_only: Sequence[str], receivers: Iterable[str]) -> PyTree:
    """True for every leaf that a stage trains; like `params`.

    Args:
        params: the parameters (arrays or shapes).
        train_only: regular expressions, each for one or more whole names of a path (`readers/qwen`
            is not `readers/qwen2`); empty: all leaves are trained.
        receivers: their names; linen's names of readers (`readers_qwen_lora`) are understood.

    Raises:
        UserError: a pattern matches no parameter.
    """
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = []
    for given in train_only:
        whole = readable(given, receivers).strip("/")
        patterns.append(re.compile(rf"(^|/)({whole})(/|$)"))
        if not any(patterns[-1].search(path) for path in paths):
            parts = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
            raise UserError(f"train_only: {given!r} matches no parameter; there are {parts}")
    return jax.tree_util.tree_map_with_path(
        lambda p, _: not patterns or any(x.search(path_of(p)) for x in patterns), params
    )
