"""Signs that a model says the same thing whatever it is given (docs/design.md section 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A unit of 1 to 40 characters, four times in a row, over at least eight characters.
_LOOP = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)
_SHORTEST = 8


def loops(text: str) -> float:
    """1.0 if a piece of the text repeats back to back at least four times."""
    # The added space lets the last word of "no no no no" close its unit.
    return float(any(len(m.group()) >= _SHORTEST for m in _LOOP.finditer(text.strip() + " ")))


def distinct(outputs: Sequence[str]) -> float:
    """Share of different outputs, in (0, 1]; 1.0 for no outputs at all."""
    stripped = [o.strip() for o in outputs]
    return len(set(stripped)) / len(stripped) if stripped else 1.0
