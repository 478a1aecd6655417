"""What a data set is: it gives the rows of a split.

A file of this folder with a dataclass `Config(DataSet)` is a data set; its name is the file's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from lw_jax.data.example import Rows


class DataSet(ABC):
    """Base of every data set's `Config`."""

    @abstractmethod
    def rows(self, split: str, seed: int = 0, level: int | None = None) -> Rows:
        """The rows of a split.

        Args:
            split: one of `lw_jax.data.example.Split`.
            seed: of what is drawn or made up.
            level: rows of one level of a curriculum; None: as the data says.

        Raises:
            UserError: the data cannot be read, or has no row of that level.
        """

    @property
    def ends_in_number(self) -> bool:
        """Whether an answer is a worked solution that ends in its number ("#### 42"), as GSM8K's:
        then the number is scored by itself."""
        return False

    @property
    def choices(self) -> tuple[str, ...]:
        """Every answer that a row may have, where the data is a task of a few labels; else ()."""
        return ()
