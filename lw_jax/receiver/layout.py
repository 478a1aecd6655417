"""From text to the segments of the receiver's sequence (SPEC section 3), on the host.

    [BOS] [primer] | [message] | [question] [anchor] | [answer] [EOS]
        head       |           |        ask          |    answer

Head, message and ask are tokenised apart, everywhere the same; ask and answer jointly, so that the
labels are the joint tokenisation's. No jax here: worker processes prepare batches with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from lw_jax.config.layout import LayoutConfig
from lw_jax.data.example import Example
from lw_jax.errors import UserError

_MESSAGE = "\u0001message\u0001"


@dataclass(frozen=True)
class Speaker:
    """One model's side of the layout: its tokenizer and the literals in its own tokens.

    tokenizer: without special tokens in its output; bos_id: None when the family has none;
    eos_id: the id that ends an answer; chat: `(before, after)` of the chat template around the
    message, or None; name: for error messages.
    """

    name: str
    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int
    chat: tuple[str, str] | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return [e.ids for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def speaker(name: str, tokenizer: Any, bos_id: int | None, eos_ids: Sequence[int]) -> Speaker:
    """The layout's view of a transformers tokenizer. The answer ends with the tokenizer's own EOS
    where that is one of the model's EOS ids, else with the first of them."""
    own = tokenizer.eos_token_id
    eos = own if own in eos_ids else eos_ids[0]
    chat = None
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = text.partition(_MESSAGE)
        if tokenizer.bos_token and before.startswith(tokenizer.bos_token):
            before = before[len(tokenizer.bos_token) :]
        chat = (before, after)
    return Speaker(name, tokenizer.backend_tokenizer, bos_id, int(eos), chat)


def _chat(config: LayoutConfig, who: Speaker) -> tuple[str, str]:
    if config.anchor_mode != "chat":
        return "", ""
    if who.chat is None:
        raise UserError(
            f"layout.anchor_mode: the tokenizer of {who.name} has no chat template; "
            "use anchor_mode: text"
        )
    return who.chat


def head_ids(config: LayoutConfig, who: Speaker) -> list[int]:
    """[BOS] and primer."""
    before, _ = _chat(config, who)
    bos = [] if who.bos_id is None else [who.bos_id]
    return bos + who.encode(before + config.primer)


def message_text(config: LayoutConfig, context: str) -> str:
    """The text that the latent replaces. The anchor's literal never stands in it."""
    text = context
    if config.anchor_mode != "none" and config.anchor.strip():
        text = text.replace(config.anchor.strip(), "").strip()
    return (" " if config.primer else "") + text


def source_text(config: LayoutConfig, example: Example) -> str:
    """The text that the sender reads: the message, and the question if it travels in the latent."""
    text = message_text(config, example.context)
    if config.question_in == "latent" and config.question:
        text += config.question.format(question=example.question)
    return text


def ask_text(config: LayoutConfig, who: Speaker, question: str) -> str:
    """Question and anchor."""
    _, after = _chat(config, who)
    asked = ""
    if config.question and question and config.question_in == "receiver":
        asked = config.question.format(question=question)
    return asked + after + ("" if config.anchor_mode == "none" else config.anchor)


def answer_text(answer: str) -> str:
    """The answer as it follows the anchor: the space belongs to the answer."""
    return " " + answer.strip()


@dataclass(frozen=True)
class Asked:
    """Token ids of one question: `ask` (question and anchor) and `answer`, EOS included."""

    ask: list[int]
    answer: list[int]


def split_joint(
    config: LayoutConfig, who: Speaker, pairs: Sequence[tuple[str, str]]
) -> list[Asked | None]:
    """Ask and answer ids of (question, answer) pairs, from the joint tokenisation; None where no
    token ends where the anchor ends."""
    asks = [ask_text(config, who, q) for q, _ in pairs]
    answers = [answer_text(a) for _, a in pairs]
    if config.bos_after_anchor:
        again = [] if who.bos_id is None else [who.bos_id]
        return [
            Asked(x + again, y + [who.eos_id])
            for x, y in zip(who.encode_all(asks), who.encode_all(answers), strict=True)
        ]
    joint = who.tokenizer.encode_batch(
        [x + y for x, y in zip(asks, answers, strict=True)], add_special_tokens=False
    )
    apart = who.encode_all(asks)
    found: list[Asked | None] = []
    for whole, ask in zip(joint, apart, strict=True):
        ids = list(whole.ids)
        if ids[: len(ask)] == ask and len(ids) > len(ask):
            found.append(Asked(ask, ids[len(ask) :] + [who.eos_id]))
        else:
            found.append(None)
    return found


def check_labels(config: LayoutConfig, who: Speaker, examples: Sequence[Example]) -> int:
    """The start-up proof that labels are the joint tokenisation's answer tokens (SPEC section 3).

    For every example: ask + answer ids are the tokens of the one string, decode back to the answer,
    and end in the EOS id. Returns how many were checked.

    Raises:
        UserError: a label differs; names the receiver and the text.
    """
    pairs = [(e.question, e.answers[0]) for e in examples]
    for (question, answer), asked in zip(pairs, split_joint(config, who, pairs), strict=True):
        text = ask_text(config, who, question) + answer_text(answer)
        if asked is None:
            raise UserError(
                f"receivers.{who.name}: its tokenizer merges the anchor {config.anchor!r} with the "
                f"answer in {text[-40:]!r}; choose an anchor that ends at a token boundary"
            )
        back = who.tokenizer.decode(asked.answer[:-1], skip_special_tokens=False)
        if back.strip() != answer.strip() or asked.answer[-1] != who.eos_id:
            raise UserError(
                f"receivers.{who.name}: labels of {answer!r} decode to {back!r}; "
                "its tokenizer does not give the text back"
            )
    return len(pairs)
