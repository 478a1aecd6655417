"""ByteEncoder: a trained transformer reads the UTF-8 bytes of the text; there is no sender.

A byte is embedded, given its position, and reads all others in `depth` layers (docs/design.md
section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from lw_jax.errors import UserError
from lw_jax.layers.transformer import Stack, check_heads, sinusoid
from lw_jax.models.dims import BridgeDims
from lw_jax.models.encoder_arch import AnyArch
from lw_jax.models.frozen import Sender
from lw_jax.sources.base import Source, SourceShape
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import Features, PyTree, SourceTokens, Taps
from lw_jax.utils.bounds import Heads, Layers, MlpRatio, Tokens, Width

VOCAB = 256


@dataclass(frozen=True)
class Config(Source):
    """Raw UTF-8 bytes, read by a transformer that is trained with the bridge.

    Args:
        max_bytes: longer texts are left out and counted.
        width: width of the transformer.
        heads: attention heads of the transformer.
        depth: layers of the transformer.
        mlp_ratio: hidden width of its MLPs over the width.
        rotary: rotary embedding: attention also depends on the distance between bytes.
    """

    max_bytes: Tokens = 2048
    width: Width = 256
    heads: Heads = 8
    depth: Layers = 6
    mlp_ratio: MlpRatio = 4
    rotary: bool = False

    reads_sender: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads: {self.heads} do not divide the width {self.width}")
        check_heads(self.width, self.heads, self.rotary)

    def build(self, dims: BridgeDims) -> ByteEncoder:
        """The source; all of it is trainable."""
        return ByteEncoder(self)

    def tokenizer(self, sender: Tokenizer | None) -> Tokenizer:
        """How text becomes bytes: ids 0 to 255."""
        alphabet = {f"<0x{byte:02X}>": byte for byte in range(VOCAB)}
        backend = Backend(models.BPE(vocab=alphabet, merges=[], byte_fallback=True))
        backend.decoder = decoders.ByteFallback()
        return Tokenizer("bytes", backend, bos_id=None, eos_id=-1, limit=self.max_bytes)

    def extract(self, sender: Sender | None, tokens: SourceTokens, params: PyTree | None) -> Taps:
        """The bytes of a batch; nothing frozen is run, and there is no tap."""
        states = jnp.zeros((0, *tokens.ids.shape, 0), jnp.float32)
        return Taps(states, tokens.content, tokens.ids)

    def shape(self, sender: AnyArch | None) -> SourceShape:
        """No tap (width 0), and the size of the vocabulary."""
        return SourceShape(0, 0, VOCAB)


class ByteEncoder(nn.Module):
    """Bytes [B, T] to features [B, T, width] of unit RMS."""

    config: Config

    @nn.compact
    def __call__(self, source: Taps) -> Features:
        c = self.config
        index = jnp.cumsum(source.mask, axis=1) - 1
        x = nn.Embed(VOCAB, c.width, embedding_init=nn.initializers.normal(1.0), name="byte")(
            source.ids
        )
        x = x + sinusoid(index, c.width)
        at = index.astype(jnp.float32) if c.rotary else None
        x = Stack(c.depth, c.heads, c.mlp_ratio, name="encoder")(x, source.mask, at=at)
        return Features(nn.RMSNorm(name="out_norm")(x), source.mask, source.ids)
