"""The config of the receiver's sequence; apart from the schema, so that it imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lw_jax.errors import UserError


@dataclass(frozen=True)
class LayoutConfig:
    """The receiver's sequence, the same for training, scoring and decoding (SPEC section 3).

    Args:
        primer: literal after BOS, before the message; empty for none.
        question: template of the question segment; empty for none.
        anchor: literal before the answer; no trailing space (the space belongs to the answer).
        anchor_mode: `text` puts the literal; `chat` the model's chat template, then the literal;
            `none` nothing.
        question_in: who is given the question: the `receiver` as text, or the `latent`.
        encoder_use_chat_template: wrap the source text in a neutral chat scaffold.
        bos_after_anchor: a second BOS after the anchor.
        max_tokens: contexts with more tokens (of any model) are left out and counted; null: none.
    """

    primer: str = "Context:"
    question: str = "\nQuestion: {question}"
    anchor: str = "\nAnswer:"
    anchor_mode: Literal["text", "chat", "none"] = "text"
    question_in: Literal["receiver", "latent"] = "receiver"
    encoder_use_chat_template: bool = False
    bos_after_anchor: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.anchor != self.anchor.rstrip():
            raise UserError(
                f"anchor: {self.anchor!r} ends in white space; "
                "the space belongs to the answer, so end the anchor without it"
            )
        if self.question and "{question}" not in self.question:
            raise UserError("question: must contain {question}, or be empty")
