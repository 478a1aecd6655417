"""The rows of a config, and a spread of them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from lw_jax.data.example import Group, Rows
from lw_jax.errors import UserError
from lw_jax.utils.registry import chosen


def load_rows(data: Any, split: str, seed: int, level: int | None = None) -> Rows:
    """The rows of a split, at one level of a curriculum if one is given.

    Raises:
        UserError: the data has no row of that level, or cannot be read.
    """
    ((name, config),) = chosen(data).items()
    module = importlib.import_module(f"lw_jax.data.{name}")
    return module.rows(config, split, seed, level)


def labels_of(data: Any) -> tuple[str, ...]:
    """Every answer that a row may have, where the data is a task of a few labels; else none."""
    ((name, config),) = chosen(data).items()
    known = getattr(importlib.import_module(f"lw_jax.data.{name}"), "labels", None)
    return () if known is None else known(config)


def sample(rows: Rows, count: int) -> list[Group]:
    """`count` contexts spread evenly over the rows."""
    if not len(rows):
        raise UserError("data: no rows; check the file and the split")
    picked = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
    return [rows[int(i)] for i in picked]
