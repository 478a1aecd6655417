"""The rows: one of the data sets."""

from __future__ import annotations

from lw_jax.utils.registry import choice

DataConfig = choice("DataConfig", "lw_jax.data", "The rows: exactly one is set.")
