"""A model's tokenizer, and the special ids that the layout needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from lw_jax.models.encoder_arch import EncoderArch

_MESSAGE = "\u0001message\u0001"


@dataclass(frozen=True)
class Tokenizer:
    """One model's side of the layout: its tokenizer and the literals in its own tokens.

    backend: without special tokens in its output; bos_id: None when the family has none;
    eos_id: the id that ends an answer; chat: `(before, after)` of the chat template around the
    message, or None; name: for error messages; limit: the most tokens of a text that it takes,
    None where `layout.max_tokens` says; tail: ids that end a text that is read as a source (an
    encoder's [SEP]); positions: tokens that it can read at all, None where there is no end.
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


def text_tokenizer(
    name: str, hf_tokenizer: Any, bos_id: int | None, eos_ids: Sequence[int]
) -> Tokenizer:
    """The layout's view of a transformers tokenizer. The answer ends with the tokenizer's own EOS
    where that is one of the model's EOS ids, else with the first of them."""
    own = hf_tokenizer.eos_token_id
    eos = own if own in eos_ids else eos_ids[0]
    chat = None
    if getattr(hf_tokenizer, "chat_template", None):
        text = hf_tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = text.partition(_MESSAGE)
        if hf_tokenizer.bos_token and before.startswith(hf_tokenizer.bos_token):
            before = before[len(hf_tokenizer.bos_token) :]
        chat = (before, after)
    return Tokenizer(name, hf_tokenizer.backend_tokenizer, bos_id, int(eos), chat)


def encoder_tokenizer(name: str, hf_tokenizer: Any, arch: EncoderArch) -> Tokenizer:
    """How a sentence encoder reads a text: [CLS] text [SEP], in no more than its positions."""
    assert arch.cls_id is not None and arch.sep_id is not None  # its tokenizer was asked
    return Tokenizer(
        name,
        hf_tokenizer.backend_tokenizer,
        bos_id=arch.cls_id,
        eos_id=arch.sep_id,
        tail=(arch.sep_id,),
        positions=arch.max_positions,
    )
