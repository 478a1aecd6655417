"""Token states, or one vector, of a frozen sentence encoder such as MiniLM or bge.

The run's `sender` is the encoder. It reads [CLS] text [SEP] in its own tokens, and every token sees
all others (docs/design.md sections 1 and 4). With `pool: none`, before `pooled_queries` (with
gates) or `perceiver`, this is the STQueryEncoder of LatentWire (PyTorch); with `pool: mean`, before
`pool_expand`, its SimpleEncoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lw_jax.errors import UserError
from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder import run
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.frozen import FrozenEncoder, Sender
from lw_jax.sources.base import Source, SourceShape
from lw_jax.sources.hidden_states import Config as OneTap
from lw_jax.sources.hidden_states import HiddenStates
from lw_jax.sources.normaliser import Normaliser
from lw_jax.sources.sender import encoder
from lw_jax.types import Array, Features, PyTree, SourceTokens, Taps
from lw_jax.utils.bounds import LayersOrNone


@dataclass(frozen=True)
class Config(Source):
    """States of a sentence encoder.

    Every feature has unit RMS, unless a normaliser is given. So a sentence vector is the normalised
    vector of sentence-transformers times the square root of its width. A text with more tokens than
    the encoder has positions for, or than `layout.max_tokens`, is left out and counted, never cut.
    `layout.source_primer` is read before the text: "" for none, or the instruction that the
    encoder was trained with.

    Args:
        layer: layers run (0: the embeddings); null: all.
        pool: `none` gives the text's tokens; `mean` one vector, the mean over all tokens, [CLS] and
            [SEP] included, as sentence-transformers pools MiniLM; `cls` the state of [CLS], as it
            pools bge. A pooled text does not show its length.
        normaliser: normalises by statistics of a `calibrate` stage; null: each vector by its RMS.
    """

    layer: LayersOrNone | None = None
    pool: Literal["none", "mean", "cls"] = "none"
    normaliser: Normaliser | None = None

    sender_writes: ClassVar[bool] = False

    def layers(self, arch: EncoderArch) -> int:
        """Number of layers run.

        Raises:
            UserError: the encoder has fewer.
        """
        count = arch.layers if self.layer is None else self.layer
        if count > arch.layers:
            raise UserError(
                f"bridge.source.sentence_encoder.layer: {count} is beyond the encoder's "
                f"{arch.layers} layers; use 0 to {arch.layers}"
            )
        return count

    def build(self, dims: BridgeDims) -> SentenceEncoder:
        """The trainable part: nothing, or a normaliser's gain and bias."""
        return SentenceEncoder(self)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """Runs the encoder; no gradient reaches it.

        Returns:
            One tap [1, B, T, D], in which a pooled text has its vector at every token, so that
            objectives still know its words; mask [B, T] (False for [CLS], primer and [SEP], which
            are read but are not content); ids [B, T].
        """
        assert isinstance(sender, FrozenEncoder)
        ids, lengths = tokens.ids, tokens.lengths
        stop = self.layers(sender.arch)
        out = run(sender.arch, sender.params, ids, lengths, stop=stop, impl=sender.attention)
        h = jax.lax.stop_gradient(out.h)
        index = jnp.arange(ids.shape[1])[None, :]
        if self.pool == "mean":
            real = (index < lengths[:, None]).astype(jnp.float32)
            total = jnp.einsum("btd,bt->bd", h.astype(jnp.float32), real)
            mean = total / jnp.maximum(1.0, jnp.sum(real, axis=1, keepdims=True))
            h = jnp.broadcast_to(mean[:, None], h.shape)
        elif self.pool == "cls":
            h = jnp.broadcast_to(h[:, :1], h.shape)
        return Taps(h[None], self.content(tokens), ids)

    def content(self, tokens: SourceTokens) -> Array:
        """[B, T] bool: the tokens of the text itself, without [SEP] at its end."""
        index = jnp.arange(tokens.ids.shape[1])[None, :]
        return tokens.content & (index < tokens.lengths[:, None] - 1)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Width of the states, one tap, and the size of the encoder's vocabulary.

        Raises:
            UserError: there is no sender, it is not an encoder, or it has too few layers.
        """
        read = encoder(sender, "sentence_encoder")
        self.layers(read)
        return SourceShape(read.width, 1, read.vocab_size)

    def sender_layers(self, sender: AnyArch) -> int:
        """Number of the encoder's layers that have to be loaded."""
        return self.layers(encoder(sender, "sentence_encoder"))


class SentenceEncoder(nn.Module):
    """Taps [1, B, T, D] to features [B, T, D] float32, or [B, 1, D] if they are pooled."""

    config: Config

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        states = HiddenStates(OneTap((0,), normaliser=self.config.normaliser))
        nn.share_scope(self, states)
        features: Features = states(source)
        if self.config.pool == "none":
            return features
        # Every token of a text holds the text's vector; a text without tokens gives zeros, masked.
        some = jnp.any(features.mask, axis=1, keepdims=True)
        first = jnp.argmax(features.mask, axis=1)[:, None]
        x = jnp.take_along_axis(features.x, first[..., None], axis=1) * some[..., None]
        return Features(x, some, jnp.take_along_axis(features.ids, first, axis=1))
