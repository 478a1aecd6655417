"""The contract of sources: a source gives the features of the text.

A file of this folder with a dataclass `Config(Source)` is a source with the file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn

from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Sender
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Array, PyTree, SourceTokens, Taps
from lw_jax.utils.bounds import Checked


class SourceShape(NamedTuple):
    """Sizes of what a source gives.

    Attributes:
        width: D, width of one tap.
        taps: n, number of taps.
        vocab: entries of the vocabulary to which `Taps.ids` belong.
    """

    width: int
    taps: int
    vocab: int


class Source(Checked, ABC):
    """Base of every source's `Config`."""

    reads_sender: ClassVar[bool] = True
    """Whether it reads the frozen sender of the run."""
    sender_writes: ClassVar[bool] = True
    """Whether the sender that it reads is a language model, which can also write (`relay`)."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    @property
    def reads_receiver(self) -> str | None:
        """Name of the receiver that it reads in the sender's place; None: it reads none."""
        return None

    @abstractmethod
    def build(self, dims: BridgeDims) -> nn.Module:
        """The trainable part, a linen module `Taps -> Features`."""

    @abstractmethod
    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The frozen part: runs the sender's layers on a batch of texts.

        Args:
            sender: the frozen sender, or the receiver that it reads in its place; None: none.
            tokens: the texts.
            params: the source's own parameters; None leaves out its edits of the sender.
        """

    def content(self, tokens: SourceTokens) -> Array:
        """[B, T] bool: the tokens that are content (`Taps.mask`)."""
        return tokens.content

    @abstractmethod
    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Sizes of the taps.

        Raises:
            UserError: the source cannot read this sender.
        """

    def of_receiver(self, dims: ModelDims) -> SourceShape:
        """Sizes of the taps of a source that `reads_receiver`.

        Args:
            dims: sizes of that receiver.
        """
        raise NotImplementedError

    def sender_layers(self, sender: AnyArch) -> int:
        """Number of the sender's layers that have to be loaded."""
        return 0

    def tokenizer(self, sender: Tokenizer | None) -> Tokenizer | None:
        """The tokenizer of the text: the sender's (or that of the receiver that it reads), unless
        the source has its own."""
        return sender
