"""Token embeddings of the frozen sender: what it knows of a token before it reads its context.

Only the embedding table is loaded. A tokenizer and a table are all that this sender is, so it
shows what the sender's layers add.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from lw_jax.models.decoder import embed_tokens
from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import FrozenDecoder, Sender
from lw_jax.sources import hidden_states
from lw_jax.sources.base import Source, SourceShape
from lw_jax.sources.normaliser import Normaliser
from lw_jax.sources.pca import Pca, check_alone
from lw_jax.sources.sender import decoder
from lw_jax.types import PyTree, SourceTokens, Taps


@dataclass(frozen=True)
class Config(Source):
    """Token embeddings of the sender.

    Args:
        normaliser: by statistics that a `calibrate` stage measures; null: each token by its RMS.
        pca: principal directions that a `calibrate` stage fits, in the channels' place; null: none.
    """

    normaliser: Normaliser | None = None
    pca: Pca | None = None

    def __post_init__(self) -> None:
        check_alone(self.pca, self.normaliser)

    def build(self, dims: BridgeDims) -> hidden_states.HiddenStates:
        """The trainable part of the source: that of one tap."""
        one = hidden_states.Config((0,), normaliser=self.normaliser, pca=self.pca)
        return one.build(dims)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The embeddings of a batch as its one tap [1, B, T, D]; no layer is run."""
        assert isinstance(sender, FrozenDecoder)
        states = embed_tokens(sender.params, tokens.ids)[None]
        return Taps(jax.lax.stop_gradient(states), tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Width of the table, one tap, and entries of the sender's vocabulary.

        Raises:
            UserError: no sender or an encoder, or its table has fewer directions than the PCA is to
                keep.
        """
        table = decoder(sender, "embeddings")
        if self.pca is not None:
            self.pca.check_width("embeddings", table.width)
        return SourceShape(table.width, 1, table.vocab_size)
