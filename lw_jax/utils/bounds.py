"""Bounds of config fields, written as their types: `steps: Steps`, `dropout: Dropout = 0.0`.

pydantic reads them when a file is read, and `Checked` when a config is made in Python. A bound is
such that every value inside it can be run, given memory, and far above what a large run needs.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from lw_jax.errors import UserError
from lw_jax.utils.kinds import first_wrong

MOST = 2**31 - 1
"""Indices and counts are 32-bit integers on the device."""

Seed = Annotated[int, Ge(0), Le(MOST)]
Steps = Annotated[int, Ge(1), Le(10**9)]
Step = Annotated[int, Ge(0), Le(10**9)]
Rows = Annotated[int, Ge(1), Le(10**9)]
RowsOrNone = Annotated[int, Ge(0), Le(10**9)]
BatchSize = Annotated[int, Ge(1), Le(2**20)]
Questions = Annotated[int, Ge(1), Le(10_000)]
Workers = Annotated[int, Ge(0), Le(256)]
Tokens = Annotated[int, Ge(1), Le(2**20)]
TokensOrNone = Annotated[int, Ge(0), Le(2**20)]

Width = Annotated[int, Ge(1), Le(2**16)]
Heads = Annotated[int, Ge(1), Le(1024)]
Slots = Annotated[int, Ge(1), Le(2**14)]
Layers = Annotated[int, Ge(1), Le(1024)]
LayersOrNone = Annotated[int, Ge(0), Le(1024)]
MlpRatio = Annotated[int, Ge(1), Le(64)]
MlpRatioOrNone = Annotated[int, Ge(0), Le(64)]
Ratio = Annotated[float, Ge(1), Le(10_000)]
"""Source tokens in a slot."""

Probability = Annotated[float, Ge(0), Le(1)]
Share = Annotated[float, Ge(0), Le(1)]
Dropout = Annotated[float, Ge(0), Le(0.99)]
Decay = Annotated[float, Ge(0), Le(0.999999)]
"""Of a running average: at 1 (which 0.99999999 is in float32) it would never move."""
Weight = Annotated[float, Ge(0), Le(10**6)]
Ridge = Annotated[float, Ge(0), Le(10**6)]
"""Penalty of a least-squares fit, in shares of the features' mean square."""
LearningRate = Annotated[float, Gt(1e-12), Le(10)]
"""Below, no parameter in float32 would move."""
Temperature = Annotated[float, Ge(0.0001), Le(10_000)]

Name = Annotated[str, MinLen(1), MaxLen(200)]
"""Of a field, a split, a method."""
Location = Annotated[str, MinLen(1), MaxLen(4096)]
"""A path, or a name on the hub."""
Pattern = Annotated[str, MinLen(1), MaxLen(1000)]
Text = Annotated[str, MinLen(0), MaxLen(100_000)]
"""Free text; it may be empty."""
Word = Annotated[str, MinLen(1), MaxLen(1000)]
FEW = MaxLen(1024)
"""Most entries of a list."""
Names = Annotated[tuple[Name, ...], FEW]
Words = Annotated[tuple[Word, ...], FEW]


class Checked:
    """Base of a config dataclass: every value is checked against its field's type and bounds.

    A subclass's own `__post_init__` runs after that, so it may rely on the bounds.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__post_init__")
        if own is None:
            return

        @functools.wraps(own)
        def both(self: Checked) -> None:
            check(self)
            own(self)

        cls.__post_init__ = both  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Checks the fields of a config dataclass.

    Raises:
        UserError: a value is of another type, not finite, or out of bounds; begins with the field.
    """
    found = first_wrong(config)
    if found is not None:
        raise UserError(found)
