"""How a config names a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.errors import UserError

_LONGEST = 1024
"""The most characters of a path or a name."""


@dataclass(frozen=True)
class ModelConfig:
    """A frozen language model, or the sentence encoder that a source reads.

    Args:
        path: directory in Hugging Face format, or hub name.
        revision: branch, tag or commit of a hub model; null: its main branch.
        dtype: storage and compute type.
        quant: storage of the matrices; `none` keeps `dtype`.
        attention: `xla` runs everywhere, `cudnn` on NVIDIA GPUs in bfloat16.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quant: Literal["none", "int8", "nf4"] = "none"
    attention: Literal["xla", "cudnn"] = "xla"
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("path", "revision"):
            text = getattr(self, name)
            if text is not None and not (
                0 < len(text) <= _LONGEST and text.isprintable() and text.strip() == text
            ):
                raise UserError(
                    f"{name}: expected 1 to {_LONGEST} printable characters without spaces "
                    f"around them; got {text[:60]!a}"
                )
