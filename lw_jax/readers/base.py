"""The contract of readers: a reader hands the latent to one frozen receiver.

A file of this folder with a dataclass `Config(Reader)` is a reader with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from lw_jax.models.dims import ModelDims
from lw_jax.utils.bounds import Checked


class Reader(Checked, ABC):
    """Base of every reader's `Config`.

    Its module is called as `module(latent, train) -> Delivery`.
    """

    excludes: ClassVar[frozenset[str]] = frozenset()
    """Names of what it occupies; two readers that share a name exclude each other."""
    gives_embeds: ClassVar[bool] = False
    """Whether it delivers soft tokens (`Delivery.embeds`)."""
    acts_after: ClassVar[bool] = False
    """Whether it changes how the receiver reads the tokens after the message."""
    gives_prompt: ClassVar[bool] = False
    """Whether it delivers soft tokens that stand before the message (`Delivery.prompt`)."""
    needs_embeds: ClassVar[bool] = False
    """Whether it changes soft tokens that another reader has to deliver."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    @property
    def random_start(self) -> bool:
        """Whether it has parameters that start as random numbers, and so have to be trained."""
        return True

    @abstractmethod
    def build(self, dims: ModelDims) -> nn.Module:
        """The linen module `(Latent, train) -> Delivery` of one receiver."""
