"""What the sender writes for the method `relay`: the rival that a wire of vectors must beat.

The sender is needed whole for it, all layers and the head; what a run has not loaded of it is let
go of when it has written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lw_jax.data.example import Example
from lw_jax.evaluate.config import RelayConfig
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.receiver.answer import answers
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Written:
    """A text per row, and the seconds that writing them took, loading and compilation aside."""

    texts: tuple[str, ...]
    seconds: float

    def examples(self, examples: Sequence[Example]) -> list[Example]:
        """The rows, with what was written in the place of their contexts."""
        pairs = zip(examples, self.texts, strict=True)
        return [replace(example, context=text) for example, text in pairs]


def sender_layout(config: RelayConfig, layout: LayoutConfig) -> LayoutConfig:
    """The sender's sequence: [BOS] [primer] [text] [question, if it is shown] [prompt]."""
    primer = layout.primer if layout.source_primer is None else layout.source_primer
    return LayoutConfig(
        primer=primer,
        question=layout.question if config.with_question else "",
        anchor=config.prompt,
        anchor_mode="chat" if layout.encoder_use_chat_template else "text",
    )


def written(
    config: RelayConfig,
    layout: LayoutConfig,
    sender: FrozenDecoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
) -> Written:
    """The sender's greedy texts.

    Args:
        config: what it is asked for.
        layout: of the evaluation.
        sender: whole.
        tokenizer: the sender's.
        examples: the rows.
        batch_size: rows at once.
    """
    own, most = sender_layout(config, layout), config.max_new_tokens
    if most is None:
        most = 1 + max(len(ids) for ids in tokenizer.encode_all([e.context for e in examples]))
    how = (sender, tokenizer, own, examples, batch_size, most)
    answers(*how, only_first=True, stop=config.stop)  # compiles
    began = time.monotonic()
    texts = answers(*how, stop=config.stop)
    return Written(tuple(texts), time.monotonic() - began)
