"""What a source is: where the features of the text come from.

A file of this folder with a dataclass `Config(Source)` is a source; its name is the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn

from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Sender
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import PyTree, SourceTokens, Taps


class SourceShape(NamedTuple):
    """Sizes of what a source gives.

    Attributes:
        width: D of one tap.
        taps: how many taps there are, n.
        vocab: entries of the vocabulary that `Taps.ids` are of.
    """

    width: int
    taps: int
    vocab: int


class Source:
    """Base of every source's `Config`."""

    reads_sender: ClassVar[bool] = True
    """Whether it reads the frozen sender of the run."""
    sender_writes: ClassVar[bool] = True
    """Whether the sender that it reads is a language model, which can write too (`relay`)."""
    optimizer_rules: ClassVar[Mapping[str, str]] = {}
    """What its leaves are to the optimiser, by regular expressions on their paths below it:
    "matrix" [..., in, out], "heads_out" [..., D, H, h], "heads_in" [..., H, h, D], or "adam", which
    is no matrix. Without a rule a leaf of two axes is a matrix; see `lw_jax.train.optimiser`."""

    def build(self, dims: BridgeDims) -> nn.Module:
        """The trainable part, a linen module `Taps -> Features`."""
        raise NotImplementedError

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The frozen part: what the sender's layers make of a batch of texts.

        Args:
            sender: the frozen sender; None where there is none.
            tokens: the texts.
            params: the source's own parameters; None leaves its edits of the sender out.
        """
        raise NotImplementedError

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Sizes of the taps.

        Raises:
            UserError: the sender is not one that this source can read.
        """
        raise NotImplementedError

    def sender_layers(self, sender: AnyArch) -> int:
        """How many of the sender's layers have to be loaded."""
        return 0

    def tokenizer(self, sender: Tokenizer | None) -> Tokenizer | None:
        """In whose tokens the text is read: the sender's, unless the source has its own."""
        return sender
