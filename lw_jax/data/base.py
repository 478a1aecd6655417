"""The contract of data sets: a data set gives the rows of a split.

A file of this folder with a dataclass `Config(DataSet)` is a data set with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from lw_jax.data.example import Rows
from lw_jax.utils.bounds import Checked


class DataSet(Checked, ABC):
    """Base of every data set's `Config`."""

    @abstractmethod
    def rows(self, split: str, seed: int = 0, level: int | None = None) -> Rows:
        """The rows of a split.

        Args:
            split: one of `lw_jax.data.example.Split`.
            seed: seed of what is drawn or generated.
            level: only rows of this level of a curriculum; None: as the config says.

        Raises:
            UserError: the data cannot be read, or has no row of that level.
        """

    @property
    def ends_in_number(self) -> bool:
        """Whether an answer is a worked solution that ends in its number ("#### 42"), as GSM8K's:
        then the number is scored by itself."""
        return False

    @property
    def origin(self) -> str:
        """Where its texts come from, and under what licence, for those who quote them."""
        return "Where these rows come from, and their licence, is not known to lw_jax."

    @property
    def has_articles(self) -> bool:
        """Whether rows may name what several contexts come from (`Example.article`)."""
        return False

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which an answer ends: a line break where answers are short, none where they
        are texts or worked solutions (`decode.stop` of an evaluation says otherwise)."""
        return () if self.ends_in_number else ("\n",)

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers that a row can have, if the data is a task with a few labels; else ()."""
        return ()
