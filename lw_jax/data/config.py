"""The rows: one of the data sets."""

from __future__ import annotations

from lw_jax.data.base import DataSet
from lw_jax.utils.registry import Choice


class DataConfig(Choice[DataSet], package="lw_jax.data", contract=DataSet):
    """The rows: exactly one is set."""
