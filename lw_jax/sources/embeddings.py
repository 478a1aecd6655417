"""Token embeddings of the frozen sender: what it knows of a token before it reads its context.

Only the embedding table is loaded. A tokenizer and a table are all that this sender is, so it
shows what the sender's layers add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lw_jax.models.arch import Arch
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.sources import hidden_states
from lw_jax.sources.normaliser import Normaliser
from lw_jax.sources.pca import Pca, check_alone
from lw_jax.sources.sender import decoder
from lw_jax.types import Array, PyTree, Taps


@dataclass(frozen=True)
class Config:
    """Token embeddings of the sender.

    Args:
        normaliser: by statistics that a `calibrate` stage measures; null: each token by its RMS.
        pca: principal directions that a `calibrate` stage fits, in the channels' place; null: none.
    """

    normaliser: Normaliser | None = None
    pca: Pca | None = None

    def __post_init__(self) -> None:
        check_alone(self.pca, self.normaliser)


def build(config: Config, dims: BridgeDims) -> hidden_states.HiddenStates:
    """The trainable part of the source: that of one tap."""
    one = hidden_states.Config((0,), normaliser=config.normaliser, pca=config.pca)
    return hidden_states.build(one, dims)


def extract(
    config: Config, sender: FrozenDecoder | None, batch: Mapping[str, Array], params: PyTree | None
) -> Taps:
    """The embeddings of a batch as its one tap [1, B, T, D]; no layer is run."""
    assert sender is not None
    ids, lengths = batch["source/ids"], batch["source/lengths"]
    index = jnp.arange(ids.shape[1])[None, :]
    mask = (index >= batch["source/skip"][:, None]) & (index < lengths[:, None])
    states = embed_tokens(sender.params, ids)[None]
    return Taps(jax.lax.stop_gradient(states), mask, ids)


def dims(config: Config, sender: AnyArch | None) -> tuple[int, int, int]:
    """Width of the table, one tap, and entries of the sender's vocabulary.

    Raises:
        UserError: no sender or an encoder, or its table has fewer directions than the PCA is to
            keep.
    """
    table = decoder(sender, "embeddings")
    if config.pca is not None:
        config.pca.check_width("embeddings", table.width)
    return table.width, 1, table.vocab_size


def depth(config: Config, sender: Arch) -> int:
    """Layers of the sender that have to be loaded."""
    return 0
