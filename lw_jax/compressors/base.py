"""What a compressor is: it makes the slots of the latent from the features of the text.

A file of this folder with a dataclass `Config(Compressor)` is a compressor; its name is the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Features, Views


class Compressor:
    """Base of every compressor's `Config`.

    Its module is called as `module(views, train) -> Latent`. One that `generates` has a method
    `loss(views, target, train)` as well, by which it learns (see `objectives.flow`).
    """

    generates: ClassVar[bool] = False
    """It learns to generate given targets, and no latent is made while it does: nothing behind it
    gets a gradient."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    def build(self, dims: BridgeDims) -> nn.Module:
        """The linen module `(Views, train) -> Latent`."""
        raise NotImplementedError

    def check(self, latent_dim: int) -> None:
        """Check the options against the latent's width.

        Raises:
            UserError: they do not suit it; begins with the option's name.
        """

    @property
    def fixed_slots(self) -> int | None:
        """Slots of every text; None where a text takes as many as its length asks for."""
        return None

    @property
    def several_ratios(self) -> bool:
        """Whether it was told to learn several numbers of source tokens a slot."""
        return False

    def at_ratio(self, ratio: float) -> Self:
        """The config that gives a slot `ratio` source tokens, in training and in evaluations."""
        raise UserError("it has one number of slots")

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the views (`bridge.sources`) that it reads; (): the only one there is."""
        return ()


def only(views: Views) -> Features:
    """The one view that a compressor of one view reads."""
    (view,) = views.values()
    return view
