"""The frozen side of a run and how text reaches it: what every stage works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jax.sharding import Mesh

from lw_jax.bridge.bridge import Bridge
from lw_jax.data.example import Group
from lw_jax.models.frozen import FrozenModels
from lw_jax.text.budget import Spans, needs_nats
from lw_jax.text.collate import Collate, Lengths, Sources, measure
from lw_jax.text.layout import message_text
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

Nats = Callable[[Sequence[str]], Mapping[str, Spans]]
"""From messages in words to the nats of the sender's tokens in each."""


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
        models: what each frozen model is and how it is stored (`lw_jax.models.stored`), made when
            asked for; None: not known.
        same_model: whether a model may be stored otherwise than in a bridge's training.
        nats: from messages in words to the nats of the sender's tokens in each, for the layouts
            whose `text_budget` asks for them.
    """

    layout: LayoutConfig
    bridge: Bridge
    frozen: FrozenModels
    sources: Sources
    receivers: dict[str, Tokenizer]
    fingerprints: dict[str, str]
    mesh: Mesh
    weights: dict[str, str] = field(default_factory=dict)
    models: Callable[[], dict[str, dict[str, str]]] | None = None
    same_model: bool = False
    nats: Nats | None = None

    def collate(
        self,
        groups: Sequence[Group],
        layout: LayoutConfig | None = None,
        rows: Sequence[Group] = (),
    ) -> Collate:
        """A collator whose static lengths hold these rows.

        Args:
            groups: the rows.
            layout: another one than the pipeline's.
            rows: more that it is to take, if they are short enough.
        """
        layout = layout or self.layout
        lengths = self.lengths(groups, layout)
        nats: Mapping[str, Spans] = {}
        if needs_nats(layout.text_budget):
            assert self.nats is not None  # the config was checked: there is a sender
            texts = [message_text(layout, group[0]) for group in (*groups, *rows)]
            nats = self.nats(list(dict.fromkeys(texts)))
        return Collate(layout, self.sources, self.receivers, lengths, nats)

    def lengths(self, groups: Sequence[Group], layout: LayoutConfig | None = None) -> Lengths:
        """Static lengths that hold these rows."""
        layout = layout or self.layout
        return measure(layout, self.sources, self.receivers, groups, layout.max_tokens)
