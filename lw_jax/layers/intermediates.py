"""Values that parts of a bridge show to objectives and alarms: codes, inner activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from lw_jax.types import Array

Intermediates = Mapping[str, Any]
"""By part and name: `intermediates["bottleneck"]["codes"]`; arrays with the batch as first axis."""


def sow(module: nn.Module, name: str, value: Array) -> None:
    """Shows a value to objectives and alarms; it is stored only if intermediates are asked for."""
    module.sow("intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
