"""A model's tokenizer as a layout sees it, with the special ids that the layout needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True)
class Tokenizer:
    """One model's side of the layout: its tokenizer and the literals in its own tokens.

    Attributes:
        name: whose it is, for error messages.
        backend: gives no special tokens of its own.
        bos_id: None where the family has none.
        eos_id: the id that ends an answer.
        chat: what the chat template puts before and after the message; None without a template.
        limit: the most tokens of a text that it takes; None: `layout.max_tokens` says.
        tail: ids that end a text that is read as a source (an encoder's [SEP]).
        positions: tokens that the model can read at all; None: no limit.
    """

    name: str
    backend: Backend
    bos_id: int | None
    eos_id: int
    chat: tuple[str, str] | None = None
    limit: int | None = None
    tail: tuple[int, ...] = ()
    positions: int | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]
