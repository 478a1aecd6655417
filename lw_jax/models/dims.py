"""What a bridge must know of its frozen neighbours: widths, and how loud they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from lw_jax.models.encoder_arch import AnyArch


@dataclass(frozen=True)
class ModelDims:
    """A frozen receiver as a reader sees it.

    width D, layers L, kv_heads K, head_dim h; embed_rms: RMS of its embedding table's entries over
    real text; key_rms, value_rms: per layer, of its keys (before RoPE) and values on real text;
    heads: of its queries (None: as many as kv_heads).
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
        """Heads of its queries."""
        return self.kv_heads if self.heads is None else self.heads

    def key_scale(self, layer: int) -> float:
        """RMS of the keys in a layer (1 where it was not measured)."""
        return self.key_rms[layer] if self.key_rms else 1.0

    def value_scale(self, layer: int) -> float:
        """RMS of the values in a layer (1 where it was not measured)."""
        return self.value_rms[layer] if self.value_rms else 1.0


def sizes(arch: AnyArch, layers: int | None = None) -> ModelDims:
    """Sizes of a frozen model, or of its first layers; nothing is measured."""
    count = arch.layers if layers is None else layers
    return ModelDims(arch.width, count, arch.kv_heads, arch.head_dim, heads=arch.heads)


@dataclass(frozen=True)
class BridgeDims:
    """The frozen side of a bridge.

    source_width: D of one tap of the source; taps: how many; latent_dim: d_z of a slot;
    source_vocab: entries of the source's vocabulary, whose ids stand in `Features.ids`; sender:
    sizes of the layers that are run of it (None for sources that need no sender).
    """

    source_width: int
    taps: int
    latent_dim: int
    receivers: dict[str, ModelDims] = field(default_factory=dict)
    source_vocab: int = 0
    sender: ModelDims | None = None

    def __hash__(self) -> int:
        own = self.source_width, self.taps, self.latent_dim, self.source_vocab, self.sender
        return hash((*own, tuple(self.receivers.items())))
