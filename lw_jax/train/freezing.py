"""Which parameters a stage trains, by regular expressions that must cover something."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax

from lw_jax.errors import UserError
from lw_jax.train.optimiser import path_of
from lw_jax.types import PyTree


def frozen_leaves(params: PyTree, train_only: Sequence[str]) -> PyTree:
    """True for every leaf that no pattern matches; like `params`.

    Raises:
        UserError: a pattern matches no parameter.
    """
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in train_only:
        if not any(re.search(pattern, path) for path in paths):
            parts = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
            raise UserError(f"train_only: {pattern!r} matches no parameter; there are {parts}")
    return jax.tree_util.tree_map_with_path(
        lambda p, _: not any(re.search(pattern, path_of(p)) for pattern in train_only), params
    )
