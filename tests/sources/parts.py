"""What the sources' tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lw_jax.types import SourceTokens


def source_tokens(batch: Mapping[str, Any]) -> SourceTokens:
    """The texts of a batch, as the only source of a bridge is given them."""
    return SourceTokens(*(batch[f"source/{part}"] for part in ("ids", "lengths", "skip")))
