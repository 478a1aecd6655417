"""Values that parts of a bridge show to objectives and alarms: codes, inner activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.types import Array

Intermediates = Mapping[str, Any]
"""By part and name: `intermediates["bottleneck"]["codes"]`; arrays with the batch as first axis."""


READS, READ_ROWS = "reads", 8
"""A collection of attention weights, stored only if it is asked for; rows of a batch that have
theirs in it."""


def show_reads(module: nn.Module, weights: Array) -> None:
    """Shows what queries read, if somebody asks.

    Args:
        module: the attention.
        weights: [B, H, M, T]; the mean over heads of the first `READ_ROWS` rows is stored, float32.
    """
    if module.is_mutable_collection(READS):
        few = jnp.mean(weights[:READ_ROWS].astype(jnp.float32), axis=1)
        module.sow(READS, "weights", few, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def sow(module: nn.Module, name: str, value: Array) -> None:
    """Shows a value to objectives and alarms; it is stored only if intermediates are asked for."""
    module.sow("intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
