"""What parts of a bridge let others see while they run: codes, inner activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from lw_jax.types import Array

Intermediates = Mapping[str, Any]
"""By part and name: `notes["bottleneck"]["codes"]`; arrays with the batch in front."""


def sow(module: nn.Module, name: str, value: Array) -> None:
    """Let objectives and alarms see a value: nothing is stored where nobody asks for notes."""
    module.sow("intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
