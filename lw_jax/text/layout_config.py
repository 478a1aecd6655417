"""The config of the receiver's sequence; it imports no jax."""

from __future__ import annotations

from dataclasses import dataclass, fields
from string import Formatter
from typing import Literal

from lw_jax.errors import UserError, short
from lw_jax.text.transform import parsed
from lw_jax.utils.bounds import Checked, Name, Ratio, Text, Tokens


@dataclass(frozen=True)
class TextBudget(Checked):
    """How much of the text a rival reads that reads it (`with_text`): as many of its tokens as a
    latent would have slots. A text that is too long whole is left out all the same.

    Args:
        ratio: source tokens a slot of that latent; the budget is a text's source tokens over it,
            rounded up.
        keep: which tokens stay: the `first`, the `last`, the `sentences` nearest the question (one
            question of a context at a time, `train.questions: 1`), or those of the highest
            `surprisal` under the sender, which is loaded whole for it.
    """

    ratio: Ratio
    keep: Literal["first", "last", "sentences", "surprisal"] = "first"


@dataclass(frozen=True)
class LayoutConfig(Checked):
    """The receiver's sequence, the same for training, scoring and decoding.

    See docs/design.md section 3.

    Args:
        primer: literal before the message, no trailing space; empty for none.
        source_primer: literal before the text that the sender reads; null: the primer.
        question: template of the question segment, in which `{question}` stands for the question,
            and `{{` and `}}` for braces; empty for none.
        anchor: literal before the answer; no trailing space (the space belongs to the answer).
        anchor_mode: `text` puts the literal; `chat` the model's chat template, then the literal;
            `none` nothing.
        question_in: where the question goes: to the `receiver` as text, or into the `latent`.
        encoder_use_chat_template: the sender reads the text in a user's turn of its chat template.
        bos: position of the receiver's BOS: at the `start`, or `after_message`, so that the text
            after it begins as in pretraining (the sender's is always first).
        bos_after_anchor: a second BOS after the anchor.
        target: what the receiver writes: the `answer`, or `question_answer`: the question (of rows
            without one, the text), then anchor and answer.
        with_text: the text follows what the wire delivers, so that the receiver reads both (for
            rivals that see the text: prompt tuning, LoRA).
        text_budget: cuts that text to the budget of a latent; null: it is whole.
        transform: a change of the soft tokens that a reader delivers, in training, scoring and
            decoding alike (`rms`, `batch`, `scale_0.5`, `nearest_4`, `offset_0.5`, `codebook_0.1`;
            see `lw_jax/text/transform.py`); null: none.
        max_tokens: contexts with more tokens (in any model) are left out and counted; null: none.
    """

    primer: Text = "Context:"
    source_primer: Text | None = None
    question: Text = "\nQuestion: {question}"
    anchor: Text = "\nAnswer:"
    anchor_mode: Literal["text", "chat", "none"] = "text"
    question_in: Literal["receiver", "latent"] = "receiver"
    encoder_use_chat_template: bool = False
    bos: Literal["start", "after_message"] = "start"
    bos_after_anchor: bool = False
    target: Literal["answer", "question_answer"] = "answer"
    with_text: bool = False
    text_budget: TextBudget | None = None
    transform: Name | None = None
    max_tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if self.transform is not None:
            parsed(self.transform, "transform")
        for name, owner in (("anchor", "answer"), ("primer", "text"), ("source_primer", "text")):
            literal = getattr(self, name) or ""
            if literal != literal.rstrip():
                raise UserError(
                    f"{name}: {literal!r} ends in white space; "
                    f"the space belongs to the {owner}, so end the {name} without it"
                )
        if self.question:
            _check_template(self.question)
        if self.text_budget is not None and not self.with_text:
            raise UserError(
                "text_budget: it cuts the text that a rival reads; set with_text: true, or null"
            )
        if self.bos == "after_message" and self.anchor_mode == "chat":
            raise UserError("bos: a chat template begins with BOS; use anchor_mode: text or none")
        if self.target == "question_answer":
            if self.question_in != "latent":
                raise UserError(
                    "target: a receiver that is to write the question cannot be given it; "
                    "use question_in: latent"
                )
            if self.anchor_mode != "text" or not self.anchor or self.bos_after_anchor:
                raise UserError(
                    "target: question_answer writes the anchor between the two; give an anchor, "
                    "anchor_mode: text and no bos_after_anchor"
                )

    def differs(self, other: LayoutConfig) -> dict[str, tuple[object, object]]:
        """Fields that make another layout's sequence differ: the other's value, then this one's."""
        pairs = {f.name: (getattr(other, f.name), getattr(self, f.name)) for f in fields(self)}
        return {k: (a, b) for k, (a, b) in pairs.items() if a != b and k != "max_tokens"}


def _check_template(template: str) -> None:
    """Checks that a template of the question segment holds the question, and no other field.

    Raises:
        UserError: it does not; or a brace of its own stands in it once.
    """
    try:
        parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(
            f"question: {short(repr(template), 80)}: {error}; write a brace of the text twice"
        ) from None
    if not parts:
        raise UserError("question: must contain {question}, or be empty")
    for name, form, conversion in parts:
        if (name, form, conversion) != ("question", "", None):
            found = (
                f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form}"
            )
            raise UserError(
                f"question: {{{short(found, 40)}}} is no field of it, {{question}} is; write a "
                "brace of the text twice"
            )
