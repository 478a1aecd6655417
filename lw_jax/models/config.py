"""How a config names a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.utils.bounds import Checked, Location


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A frozen language model, or the sentence encoder that a source reads.

    Args:
        path: directory in Hugging Face format, or hub name.
        dtype: storage and compute type.
        quant: storage of the matrices; `none` keeps `dtype`.
        attention: `xla` runs everywhere, `cudnn` on NVIDIA GPUs in bfloat16.
    """

    path: Location
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quant: Literal["none", "int8", "nf4"] = "none"
    attention: Literal["xla", "cudnn"] = "xla"
