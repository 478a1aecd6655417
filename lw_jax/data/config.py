"""The rows: one of the data sets."""

from __future__ import annotations

from lw_jax.data.base import DataSet
from lw_jax.utils.checks import exactly_one
from lw_jax.utils.registry import Choice


class DataConfig(Choice[DataSet], package="lw_jax.data", contract=DataSet):
    """The rows: exactly one is set."""

    def __post_init__(self) -> None:
        exactly_one(self)
