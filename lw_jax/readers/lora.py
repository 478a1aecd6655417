"""LoRA on the receiver's first layers (Hu et al. 2021): the same low-rank edits for every latent.

They are delivered like a message, so methods other than `latent` and its controls read with the
clean receiver (fault 13 of docs/faults.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lw_jax.layers.low_rank import LowRank, LowRankConfig
from lw_jax.models.dims import ModelDims
from lw_jax.readers.base import Reader


@dataclass(frozen=True)
class Config(LowRankConfig, Reader):
    __doc__ = LowRankConfig.__doc__

    acts_after: ClassVar[bool] = True

    def build(self, dims: ModelDims) -> LowRank:
        """The reader of one receiver."""
        return LowRank(self, dims)
