"""The rows of a config, and a spread of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lw_jax.data.base import DataSet
from lw_jax.data.example import Group, Rows
from lw_jax.errors import UserError
from lw_jax.utils.registry import chosen


def data_set(data: Any) -> DataSet:
    """The one data set that is chosen."""
    (config,) = chosen(data).values()
    assert isinstance(config, DataSet)
    return config


def load_rows(data: Any, split: str, seed: int, level: int | None = None) -> Rows:
    """The rows of a split, at one level of a curriculum if one is given.

    Raises:
        UserError: the data has no row of that level, or cannot be read.
    """
    return data_set(data).rows(split, seed, level)


def labels_of(data: Any) -> tuple[str, ...]:
    """Every answer that a row may have, where the data is a task of a few labels; else none."""
    return data_set(data).choices


def sample(rows: Rows, count: int) -> list[Group]:
    """`count` contexts spread evenly over the rows."""
    if not len(rows):
        raise UserError("data: no rows; check the file and the split")
    picked = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
    return [rows[int(i)] for i in picked]
