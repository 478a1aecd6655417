"""Token embeddings of the frozen sender: what it knows of a token before it reads its context.

Only the embedding table is loaded. Such a sender is a tokenizer and a table, so a comparison with
it shows what the sender's layers add.
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
        normaliser: normalises by statistics of a `calibrate` stage; null: each token by its RMS.
        pca: replaces the channels by principal directions that a `calibrate` stage fits; null:
            none.
    """

    normaliser: Normaliser | None = None
    pca: Pca | None = None

    def __post_init__(self) -> None:
        check_alone(self.pca, self.normaliser)

    def build(self, dims: BridgeDims) -> hidden_states.HiddenStates:
        """The trainable part: the same as for one hidden state."""
        one = hidden_states.Config((0,), normaliser=self.normaliser, pca=self.pca)
        return one.build(dims)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The embeddings of a batch as its only tap [1, B, T, D]; no layer is run."""
        assert isinstance(sender, FrozenDecoder)
        states = embed_tokens(sender.params, tokens.ids)[None]
        return Taps(jax.lax.stop_gradient(states), tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Width of the table, one tap, and the size of the sender's vocabulary.

        Raises:
            UserError: there is no sender or it is an encoder, or the PCA has more directions than
                the table has channels.
        """
        table = decoder(sender, "embeddings")
        if self.pca is not None:
            self.pca.check_width("embeddings", table.width)
        return SourceShape(table.width, 1, table.vocab_size)
