"""The contract of compressors: a compressor makes the slots of the latent from the features.

A file of this folder with a dataclass `Config(Compressor)` is a compressor with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.types import Features, Views
from lw_jax.utils.bounds import Checked


class Compressor(Checked, ABC):
    """Base of every compressor's `Config`.

    Its module is called as `module(views, train) -> Latent`. If it `generates`, it also has a
    method `loss(views, target, train)`, by which it learns (see `objectives.flow`).
    """

    generates: ClassVar[bool] = False
    """Whether it learns to generate given targets. No latent is made in training then, so no other
    part gets a gradient.
    """
    gives_span: ClassVar[bool] = True
    """Whether its latents have a `span`; a packet with or without one is refused accordingly."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    @abstractmethod
    def build(self, dims: BridgeDims) -> nn.Module:
        """The linen module `(Views, train) -> Latent`."""

    def check(self, latent_dim: int) -> None:
        """Checks the options against the latent's width.

        Raises:
            UserError: they do not fit; the message begins with the option's name.
        """
        return

    @property
    def fixed_slots(self) -> int | None:
        """Number of slots of every text; None: it depends on the text's length."""
        return None

    @property
    def sent_slots(self) -> tuple[int, int | None]:
        """The fewest and the most real slots of a text; None: no more than its source tokens.

        A packet with another number of slots is refused. A compressor that masks some of its
        `fixed_slots` says here how many are left at least.
        """
        fixed = self.fixed_slots
        return (1, None) if fixed is None else (fixed, fixed)

    @property
    def several_ratios(self) -> bool:
        """Whether it learns several numbers of source tokens in a slot."""
        return False

    def at_ratio(self, ratio: float) -> Self:
        """The config with `ratio` source tokens in a slot, in training and in evaluations.

        Args:
            ratio: source tokens in a slot.

        Raises:
            UserError: it was not made for several ratios.
        """
        raise UserError("it has one number of slots")

    def at_view(self, view: str) -> Self:
        """The config that makes its latents from one view of the text alone.

        Args:
            view: the view's name.

        Raises:
            UserError: it makes one latent of all that it reads, or none of this view.
        """
        raise UserError("it makes one latent of all that it reads; leave view out")

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the views (`bridge.sources`) that it reads; (): the only view."""
        return ()


def only(views: Views) -> Features:
    """The view of a compressor that reads one."""
    (view,) = views.values()
    return view
