"""What a bridge needs to know of the frozen models: sizes, and the RMS of what they compute."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lw_jax.models.encoder_arch import AnyArch


@dataclass(frozen=True)
class ModelDims:
    """Sizes of a frozen language model, and the RMS of what it computes on real text.

    Attributes:
        width: D, width of its hidden states.
        layers: L, number of layers.
        kv_heads: K, heads of its keys and values.
        head_dim: h, width of a head.
        embed_rms: RMS of its input embeddings over real text.
        key_rms: RMS of its keys (before RoPE) on real text, for each layer.
        value_rms: RMS of its values on real text, for each layer.
        heads: heads of its queries; None: kv_heads.
    """

    width: int
    layers: int
    kv_heads: int
    head_dim: int
    embed_rms: float = 1.0
    key_rms: tuple[float, ...] = ()
    value_rms: tuple[float, ...] = ()
    heads: int | None = None

    @property
    def query_heads(self) -> int:
        """Number of query heads."""
        return self.kv_heads if self.heads is None else self.heads

    def key_scale(self, layer: int) -> float:
        """RMS of the keys in a layer (1 if it was not measured)."""
        return self.key_rms[layer] if self.key_rms else 1.0

    def value_scale(self, layer: int) -> float:
        """RMS of the values in a layer (1 if it was not measured)."""
        return self.value_rms[layer] if self.value_rms else 1.0


def sizes(arch: AnyArch, layers: int | None = None) -> ModelDims:
    """Sizes of a frozen model, or of its first layers; nothing is measured.

    Args:
        arch: the model.
        layers: number of layers, from the first on; None: all.
    """
    count = arch.layers if layers is None else layers
    return ModelDims(arch.width, count, arch.kv_heads, arch.head_dim, heads=arch.heads)


class ViewDims(NamedTuple):
    """Sizes of one view of the source, where a bridge reads several.

    Attributes:
        width: D, width of one tap.
        taps: number of taps.
        vocab: entries of the vocabulary of its ids.
        layers: layers of the sender that it reads.
    """

    width: int
    taps: int
    vocab: int
    layers: int


@dataclass(frozen=True)
class BridgeDims:
    """The frozen side of a bridge, in sizes.

    Attributes:
        source_width: D, width of one tap of the source.
        taps: number of taps.
        latent_dim: d, width of a slot.
        receivers: the receivers by name.
        source_vocab: entries of the source's vocabulary, to which `Features.ids` belong.
        sender: sizes of the sender's layers that are run; None: the source needs no sender.
        views: sizes of every view by name, where there are several; the fields above are then
            those of the first view.
    """

    source_width: int
    taps: int
    latent_dim: int
    receivers: dict[str, ModelDims] = field(default_factory=dict)
    source_vocab: int = 0
    sender: ModelDims | None = None
    views: tuple[tuple[str, ViewDims], ...] = ()

    def __hash__(self) -> int:
        own = self.source_width, self.taps, self.latent_dim, self.source_vocab, self.sender
        return hash((*own, tuple(self.receivers.items()), self.views))

    def of_view(self, name: str) -> BridgeDims:
        """The sizes as the source of one view sees them."""
        if not self.views:
            return self
        width, taps, vocab, layers = dict(self.views)[name]
        sender = None if self.sender is None else replace(self.sender, layers=layers)
        return replace(
            self, source_width=width, taps=taps, source_vocab=vocab, sender=sender, views=()
        )
