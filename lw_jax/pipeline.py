"""The frozen side of a run and how text reaches it: what every stage works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import Mesh

from lw_jax.bridge.apart import SenderApart
from lw_jax.bridge.bridge import Bridge
from lw_jax.data.example import Group
from lw_jax.mesh import batch_sharding, put_batch
from lw_jax.models.frozen import Elsewhere, FrozenModels, Sender
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
        apart: the sender, where it has devices of its own; None: it is on the mesh.
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
    apart: SenderApart | None = None

    @property
    def sender(self) -> Sender | None:
        """The frozen sender, wherever it is; None: the sources need none."""
        if self.apart is not None:
            return self.apart.model
        found = self.frozen.sender
        assert not isinstance(found, Elsewhere)
        return found

    @property
    def sender_mesh(self) -> Mesh:
        """The devices of the sender: the mesh, unless it has devices of its own."""
        return self.mesh if self.apart is None else self.apart.mesh

    def placed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of the host on the mesh, with what a sender on other devices says of it."""
        return put_batch(self.mesh, batch) | self.taps(batch)

    def with_taps(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the mesh with what a sender on other devices says of it; nothing is waited
        for."""
        return {**batch, **self.taps(batch)}

    def taps(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What a sender on other devices says of a batch, on the mesh (`SenderApart.taps`)."""
        where = batch_sharding(self.mesh)
        return {} if self.apart is None else self.apart.taps(self.bridge, batch, where)

    def shapes_with_taps(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What stands for `with_taps` when a program is traced."""
        where = batch_sharding(self.mesh)
        more = {} if self.apart is None else self.apart.shapes(self.bridge, batch, where)
        return {**batch, **more}

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
