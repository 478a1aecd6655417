"""The contract of bottlenecks: a bottleneck changes the latent so that few bytes cross the wire.

A file of this folder with a dataclass `Config(Bottleneck)` is a bottleneck with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from lw_jax.layers.intermediates import Intermediates
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Array, PyTree
from lw_jax.utils.bounds import Checked


class Bottleneck(Checked, ABC):
    """Base of every bottleneck's `Config`.

    Its module is called as `module(latent, train) -> Latent`. One with codes sows `codes`, and has
    a method `slots_of(latent) -> Latent` that gets codes [B, M, n] in place of the slots.
    """

    trains_itself: ClassVar[bool] = False
    """Whether `after_step` changes parameters of its own (a codebook's dead codes)."""
    random_start: ClassVar[bool] = True
    """Whether it has parameters that start as random numbers, and so have to be trained."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    levels: tuple[int, ...] = ()
    """Number of values of each code in a slot; (): slots cross the wire, not codes."""

    @abstractmethod
    def build(self, dims: BridgeDims) -> nn.Module:
        """The linen module `(Latent, train) -> Latent`."""

    @property
    def codec(self) -> str:
        """The codec (`lw_jax.wire.codecs`) that holds its result exactly."""
        return "float32"

    def after_step(self, params: PyTree, intermediates: Intermediates, rng: Array) -> PyTree:
        """Its parameters after a training step.

        Args:
            params: its parameters after the optimiser's step.
            intermediates: what it sowed in the step.
            rng: random key.
        """
        return params
