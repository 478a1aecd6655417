"""What the weather was, and where."""

from __future__ import annotations

from dataclasses import dataclass

from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Rows, rng_of
from lw_jax.data.source import ListRows

CITIES, SKIES = ("Rome", "Oslo", "Lima", "Bonn"), ("sunny", "wet", "cold", "grey")


@dataclass(frozen=True)
class Config(DataSet):
    """Made-up weather reports.

    Args:
        size: rows of a split.
    """

    size: int = 40

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> Rows:
        return ListRows([(self._row(f"{split}-{seed}-{i}"),) for i in range(self.size)], [])

    @property
    def choices(self) -> tuple[str, ...]:
        return SKIES

    def _row(self, name: str) -> Example:
        rng = rng_of(name)
        city, sky = rng.choice(CITIES), rng.choice(SKIES)
        text = f"In {city} it was {sky}."
        return Example(name, name, text, f"How was it in {city}?", (sky,))
