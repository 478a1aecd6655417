"""The frozen side of a run and how text reaches it: what every stage works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.data.example import Group
from lw_jax.models.frozen import FrozenModels
from lw_jax.text.collate import Collate, Lengths, Sources, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pipeline:
    """The frozen models of a run, how text reaches them, and the bridge: all but its parameters.

    Attributes:
        layout: the receiver's sequence.
        bridge: the bridge.
        frozen: the frozen models.
        sources: tokenizers of the source (raw bytes have their own).
        receivers: the receivers' tokenizers by name.
        fingerprints: fingerprints of the frozen models by name (`lw_jax.models.fingerprint`).
        mesh: the device mesh.
        weights: fingerprints of the frozen models' weights and architectures alone, by name.
    """

    layout: LayoutConfig
    bridge: Bridge
    frozen: FrozenModels
    sources: Sources
    receivers: dict[str, Tokenizer]
    fingerprints: dict[str, str]
    mesh: Mesh
    weights: dict[str, str] = field(default_factory=dict)

    def collate(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Collate:
        """A collator whose static lengths hold these rows."""
        return Collate(
            layout or self.layout, self.sources, self.receivers, self.lengths(groups, layout)
        )

    def lengths(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Lengths:
        """Static lengths that hold these rows."""
        layout = layout or self.layout
        return measure(layout, self.sources, self.receivers, groups, layout.max_tokens)
