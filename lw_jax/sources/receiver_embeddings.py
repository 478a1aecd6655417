"""Token embeddings of one of the run's receivers: a text as that model spells it.

Nothing more is loaded, for receivers are loaded whole. Beside other views of the same text
(`bridge.sources`), it lets a latent be made from either side of a wire (`compressor.interlingua`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from lw_jax.models.decoder import embed_tokens
from lw_jax.models.dims import BridgeDims, ModelDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import FrozenDecoder, Sender
from lw_jax.sources import hidden_states
from lw_jax.sources.base import Source, SourceShape
from lw_jax.types import PyTree, SourceTokens, Taps
from lw_jax.utils.bounds import Name


@dataclass(frozen=True)
class Config(Source):
    """Token embeddings of a receiver, each with unit RMS.

    Args:
        receiver: name of the receiver.
    """

    receiver: Name

    reads_sender: ClassVar[bool] = False

    @property
    def reads_receiver(self) -> str:
        """The receiver's name."""
        return self.receiver

    def build(self, dims: BridgeDims) -> hidden_states.HiddenStates:
        """The trainable part: nothing; the same as for one hidden state."""
        return hidden_states.Config((0,)).build(dims)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The embeddings of a batch as its only tap [1, B, T, D]; no layer is run.

        Args:
            sender: the receiver that is read.
            tokens: the texts in its tokens.
            params: none.
        """
        assert isinstance(sender, FrozenDecoder)
        states = embed_tokens(sender.params, tokens.ids)[None]
        return Taps(jax.lax.stop_gradient(states), tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """One tap; its width is the receiver's, see `of_receiver`."""
        return SourceShape(0, 1, 0)

    def of_receiver(self, dims: ModelDims) -> SourceShape:
        """One tap of the receiver's width; the size of its vocabulary is not known here."""
        return SourceShape(dims.width, 1, 0)
