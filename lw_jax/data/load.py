"""The rows of a config, and a sample of them."""

from __future__ import annotations

from functools import lru_cache
from threading import RLock
from typing import Any

import numpy as np

from lw_jax.data import files
from lw_jax.data.base import DataSet
from lw_jax.data.example import Group, Rows
from lw_jax.data.source import FileSource
from lw_jax.errors import UserError
from lw_jax.utils.registry import chosen

_READING = RLock()
"""What two threads ask for is read once."""


def data_set(data: Any) -> DataSet:
    """The data set that is set."""
    (config,) = chosen(data).values()
    assert isinstance(config, DataSet)
    return config


def load_rows(data: Any, split: str, seed: int, level: int | None = None) -> Rows:
    """The rows of a split.

    Args:
        data: the data sets, of which one is set.
        split: the split.
        seed: seed of what is drawn or generated.
        level: only rows of this level of a curriculum; None: as the config says.

    Raises:
        UserError: the data has no row of that level, or cannot be read.
    """
    one = data_set(data)
    state = _state(one, split)
    with _READING:
        if state is None:
            return one.rows(split, seed, level)
        return _held(one, split, seed, level, state)


@lru_cache(maxsize=8)
def _held(one: DataSet, split: str, seed: int, level: int | None, state: files.State) -> Rows:
    """The rows of small files as they are now: a start checks the rows that a stage then reads."""
    del state
    return one.rows(split, seed, level)


def _state(one: DataSet, split: str) -> files.State | None:
    """What changes when the files of a data set do; None: its rows are not held."""
    if not isinstance(one, FileSource):
        return None
    return files.state(one.eval if split == "eval" and one.eval else one.train)


def labels_of(data: Any) -> tuple[str, ...]:
    """All answers that a row can have, if the data is a task with a few labels; else ()."""
    return data_set(data).choices


def origins(*data: Any) -> list[str]:
    """Where the texts of data sets come from, and their licences; each said once.

    Args:
        data: data sets, or the data of a config, of which one is set.
    """
    held = [one if isinstance(one, DataSet) else data_set(one) for one in data]
    return list(dict.fromkeys(one.origin for one in held))


def sample(rows: Rows, count: int) -> list[Group]:
    """`count` contexts spread evenly over the rows."""
    if not len(rows):
        raise UserError("data: no rows; check the file and the split")
    picked = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
    return [rows[int(i)] for i in picked]
