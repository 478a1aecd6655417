"""The contract of readers: a reader hands the latent to one frozen receiver.

A file of this folder with a dataclass `Config(Reader)` is a reader with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import flax.linen as nn

from lw_jax.models.dims import ModelDims


class Reader(ABC):
    """Base of every reader's `Config`.

    Its module is called as `module(latent, train) -> Delivery`.
    """

    excludes: ClassVar[frozenset[str]] = frozenset()
    """Names of what it occupies; two readers that share a name exclude each other."""
    gives_embeds: ClassVar[bool] = False
    """Whether it delivers soft tokens (`Delivery.embeds`)."""
    needs_embeds: ClassVar[bool] = False
    """Whether it changes soft tokens that another reader has to deliver."""

    @abstractmethod
    def build(self, dims: ModelDims) -> nn.Module:
        """The linen module `(Latent, train) -> Delivery` of one receiver."""
