"""What is loaded of a bridge, and what both of its ends ask of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lw_jax.errors import UserError
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.pipeline import Pipeline
from lw_jax.runs.trained import Trained
from lw_jax.wire.gate import Gate

Role = Literal["both", "sender", "receiver"]


@dataclass(frozen=True, repr=False)
class Loaded:
    """A bridge with its frozen models; `Bridge` says what the fields are."""

    pipeline: Pipeline
    trained: Trained
    decode: DecodeConfig
    key: bytes | None = None
    role: Role = "both"
    longest: Mapping[str, int] = field(default_factory=dict)
    reach: int | None = None
    home: Path | None = None
    gate: Gate | None = None

    @property
    def mark(self) -> str:
        """Its mark, which its packets carry (`Message.bridge`), as 16 hexadecimal digits."""
        return self.trained.mark.hex()

    def _context(
        self, receiver: str, ratio: float | None = None, view: str | None = None
    ) -> EvalContext:
        s = self.pipeline
        bridge = s.bridge if ratio is None else s.bridge.at_ratio(ratio)
        bridge = bridge if view is None else bridge.at_view(view)
        return EvalContext(s.frozen, self.trained.params, None, bridge, receiver)

    def _needs(self, end: Literal["sender", "receiver"], what: str) -> None:
        if self.role not in ("both", end):
            raise UserError(
                f"{what}: this bridge was loaded with role={self.role!r}; load it with "
                f"role={end!r}, or 'both'"
            )

    def _warn(self, what: str, count: int, key: str, kind: str) -> None:
        known = self.longest.get(key)
        if known is not None and count > known:
            warnings.warn(
                f"{what} has {count} tokens, and this bridge was trained on {kind} of up to "
                f"{known}: expect errors",
                stacklevel=4,
            )
