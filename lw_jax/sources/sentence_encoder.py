"""Tokens, or the one vector, of a frozen sentence encoder such as MiniLM or bge.

The run's `sender` is the encoder. It reads [CLS] text [SEP] in its own tokens, all of them seen by
each other (docs/design.md sections 1 and 4). The STQueryEncoder of LatentWire (PyTorch) is `pool:
none` before the compressor pooled_queries (with its gates) or perceiver; its SimpleEncoder, one
sentence vector spread over the slots, is `pool: mean` before pool_expand.
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
from lw_jax.types import Features, PyTree, SourceTokens, Taps
from lw_jax.utils.checks import at_least


@dataclass(frozen=True)
class Config(Source):
    """States of a sentence encoder.

    Every feature has unit RMS, unless a normaliser is given: a sentence vector is the normalised
    one of sentence-transformers times the square root of its width. A text with more tokens than
    the encoder has positions for, or than `layout.max_tokens`, is left out and counted, never cut.
    `layout.source_primer` is read before the text: "" for none, or the instruction that the
    encoder was trained with.

    Args:
        layer: layers run (0: the embeddings); null: all.
        pool: `none` gives the text's tokens; `mean` one vector, the mean over all tokens, [CLS] and
            [SEP] among them, as sentence-transformers pools MiniLM; `cls` the state of [CLS], as it
            pools bge. Of one vector no reader learns how long the text was.
        normaliser: by statistics that a `calibrate` stage measures; null: each vector by its RMS.
    """

    layer: int | None = None
    pool: Literal["none", "mean", "cls"] = "none"
    normaliser: Normaliser | None = None

    sender_writes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, 0, "layer")

    def layers(self, arch: EncoderArch) -> int:
        """Layers run.

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
        """The trainable part of the source: none, or a normaliser's gain and bias."""
        return SentenceEncoder(self)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """Run the encoder; no gradient reaches it.

        Returns:
            one tap [1, B, T, D], in which a pooled text has its vector at every token, so that
            objectives still know its words; mask [B, T] (False for [CLS], primer and [SEP], which
            are no content but are read); ids [B, T].
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
        mask = tokens.content & (index < lengths[:, None] - 1)
        return Taps(h[None], mask, ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """Width of the states, one tap, and entries of the encoder's vocabulary.

        Raises:
            UserError: no sender, one that is no encoder, or one with too few layers.
        """
        read = encoder(sender, "sentence_encoder")
        self.layers(read)
        return SourceShape(read.width, 1, read.vocab_size)

    def sender_layers(self, sender: AnyArch) -> int:
        """Layers of the encoder that have to be loaded."""
        return self.layers(encoder(sender, "sentence_encoder"))


class SentenceEncoder(nn.Module):
    """Taps [1, B, T, D] to features [B, T, D] float32, or [B, 1, D] where they are pooled."""

    config: Config

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        states = HiddenStates(OneTap((0,), normaliser=self.config.normaliser))
        nn.share_scope(self, states)
        features: Features = states(source)
        if self.config.pool == "none":
            return features
        # Every token of a text holds its one vector; a text without any gives zeros, masked.
        some = jnp.any(features.mask, axis=1, keepdims=True)
        first = jnp.argmax(features.mask, axis=1)[:, None]
        x = jnp.take_along_axis(features.x, first[..., None], axis=1) * some[..., None]
        return Features(x, some, jnp.take_along_axis(features.ids, first, axis=1))
