"""The nats of the sender's tokens in messages in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from lw_jax.config.schema import Config
from lw_jax.evaluate.surprisal import of_texts
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.spec import SENDER
from lw_jax.runs.opened import Session
from lw_jax.text.budget import Spans
from lw_jax.text.layout_config import LayoutConfig

NATS_ROWS = 64
"""Texts that the whole sender reads at once for their nats."""


class SenderNats:
    """From messages in words to the nats of the sender's tokens in each; every text is read once.

    A text that is too long for the layout has none.
    """

    def __init__(self, config: Config, layout: LayoutConfig, mesh: Mesh, session: Session) -> None:
        assert config.sender is not None  # the caller looked
        self.sender, self.layout, self.mesh, self.session = config.sender, layout, mesh, session
        self._known: dict[str, Spans] = {}

    def __call__(self, texts: Sequence[str]) -> dict[str, Spans]:
        """The nats of some messages; the sender is loaded whole for new ones, and let go of."""
        new = [text for text in texts if text not in self._known]
        if new:
            spec, limit = self.session.open(SENDER, self.sender), self.layout.max_tokens
            sizes = [len(ids) for ids in spec.tokenizer.encode_all(new)]
            self._known |= dict.fromkeys(new, ())
            short = [t for t, n in zip(new, sizes, strict=True) if limit is None or n <= limit]
            model = self.session.load(spec, self.mesh)
            assert isinstance(model, FrozenDecoder)  # the config was checked
            rows = min(NATS_ROWS, max(1, len(short)))
            found = of_texts(self.layout, model, spec.tokenizer, short, rows) if short else []
            self._known |= {
                text: np.asarray(spans, np.float32)
                for text, spans in zip(short, found, strict=True)
            }
        return {text: self._known[text] for text in texts}
