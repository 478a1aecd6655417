"""The text's own bytes, each by a learned vector of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Sender
from lw_jax.sources import bytes as raw_bytes
from lw_jax.sources.base import Source, SourceShape
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Features, PyTree, SourceTokens, Taps


@dataclass(frozen=True)
class Config(Source):
    """Bytes without a transformer.

    Args:
        width: of a byte's vector.
    """

    width: int = 8

    reads_sender: ClassVar[bool] = False

    def build(self, dims: BridgeDims) -> nn.Module:
        return Letters(self.width)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        states = jnp.zeros((0, *tokens.ids.shape, 0), jnp.float32)
        return Taps(states, tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        return SourceShape(0, 0, raw_bytes.VOCAB)

    def tokenizer(self, sender: Tokenizer | None) -> Tokenizer:
        return raw_bytes.Config().tokenizer(None)


class Letters(nn.Module):
    """Taps -> Features [B, T, width]."""

    width: int

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        x = nn.Embed(raw_bytes.VOCAB, self.width, name="byte")(source.ids)
        return Features(x, source.mask, source.ids)
