"""The frozen side of a run and how text reaches it: what every stage works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from lw_jax.bridge.config import BridgeConfig
from lw_jax.data.example import Group
from lw_jax.models.dims import BridgeDims
from lw_jax.models.frozen import FrozenModels
from lw_jax.text.collate import Collate, Lengths, measure
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pipeline:
    """The frozen side of a run, and how text reaches it.

    sender: in whose tokens the source is read (raw bytes have their own).
    """

    layout: LayoutConfig
    bridge: BridgeConfig
    frozen: FrozenModels
    sender: Tokenizer | None
    receivers: dict[str, Tokenizer]
    fingerprints: dict[str, str]
    dims: BridgeDims
    mesh: Mesh

    def collate(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Collate:
        """A collator whose static lengths hold these rows."""
        return Collate(
            layout or self.layout, self.sender, self.receivers, self.lengths(groups, layout)
        )

    def lengths(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Lengths:
        """Static lengths that hold these rows."""
        layout = layout or self.layout
        return measure(layout, self.sender, self.receivers, groups, layout.max_tokens)
