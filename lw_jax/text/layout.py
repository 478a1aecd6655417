"""From text to the segments of the receiver's sequence (docs/design.md section 3), on the host.

    [BOS] [primer] | [message] | [question] [anchor] | [answer] [EOS]
        head       |           |        ask          |    answer

BOS may instead begin what follows the message, and the answer may begin with the question. Head,
message and ask are tokenised apart, everywhere the same; ask and answer jointly, so that the labels
are the joint tokenisation's. No jax here: worker processes prepare batches with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer


def _chat(config: LayoutConfig, tokenizer: Tokenizer) -> tuple[str, str]:
    if config.anchor_mode != "chat":
        return "", ""
    if tokenizer.chat is None:
        raise UserError(
            f"layout.anchor_mode: the tokenizer of {tokenizer.name} has no chat template; "
            "use anchor_mode: text"
        )
    return tokenizer.chat


def head_ids(config: LayoutConfig, tokenizer: Tokenizer) -> list[int]:
    """[BOS] and primer of a receiver; without BOS where that stands after the message."""
    before, _ = _chat(config, tokenizer)
    bos = _bos(tokenizer) if config.bos == "start" else []
    return bos + tokenizer.encode(before + config.primer)


@dataclass(frozen=True)
class Prompt:
    """What a layout puts around the message in one receiver's sequence; hashable, so that it is
    static in jitted functions.

    Attributes:
        head: ids of [BOS] and primer, which come first.
        with_text: whether the text follows what is delivered, so that the receiver reads both.
    """

    head: tuple[int, ...] = ()
    with_text: bool = False


def prompts_of(config: LayoutConfig, receivers: Mapping[str, Tokenizer]) -> dict[str, Prompt]:
    """What a layout puts around the message of every receiver.

    Raises:
        UserError: the layout is a chat, and a receiver has no chat template.
    """
    return {
        name: Prompt(tuple(head_ids(config, tokenizer)), config.with_text)
        for name, tokenizer in receivers.items()
    }


def source_head_ids(config: LayoutConfig, tokenizer: Tokenizer) -> list[int]:
    """What the sender reads before the text: its [BOS], and a primer.

    Raises:
        UserError: it is to read a user's turn, and has no chat template.
    """
    before = ""
    if config.encoder_use_chat_template:
        if tokenizer.chat is None:
            raise UserError(
                f"layout.encoder_use_chat_template: the tokenizer of {tokenizer.name} has no chat "
                "template; set it to false"
            )
        before = tokenizer.chat[0]
    return _bos(tokenizer) + tokenizer.encode(before + _source_primer(config))


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _source_primer(config: LayoutConfig) -> str:
    return config.primer if config.source_primer is None else config.source_primer


def content_text(config: LayoutConfig, example: Example) -> str:
    """The text that the latent replaces, and the question if it travels in the latent. The
    anchor's literal never stands in it."""
    text = example.context
    if config.anchor_mode != "none" and config.anchor.strip():
        text = text.replace(config.anchor.strip(), "").strip()
    if config.question_in == "latent" and config.question and example.question:
        text += config.question.format(question=example.question)
    return text


def message_text(config: LayoutConfig, example: Example) -> str:
    """The content as a receiver is given it in words."""
    return (" " if config.primer else "") + content_text(config, example)


def source_text(config: LayoutConfig, example: Example) -> str:
    """The content as the sender reads it."""
    return (" " if _source_primer(config) else "") + content_text(config, example)


def ask_text(config: LayoutConfig, tokenizer: Tokenizer, question: str) -> str:
    """Question and anchor; not the anchor where the receiver writes it."""
    _, after = _chat(config, tokenizer)
    asked = ""
    if config.question and question and config.question_in == "receiver":
        asked = config.question.format(question=question)
    anchored = config.anchor_mode != "none" and config.target == "answer"
    asked += after + (config.anchor if anchored else "")
    return asked.lstrip() if config.bos == "after_message" else asked


def ask_ids(config: LayoutConfig, tokenizer: Tokenizer, asked: Sequence[int]) -> list[int]:
    """Ids of question and anchor, with the BOS that stands before or after them.

    Raises:
        UserError: BOS is to stand after the message, and the receiver has none.
    """
    if config.bos == "after_message" and tokenizer.bos_id is None:
        raise UserError(f"layout.bos: receivers.{tokenizer.name} has no BOS token; use bos: start")
    first = _bos(tokenizer) if config.bos == "after_message" else []
    return first + list(asked) + (_bos(tokenizer) if config.bos_after_anchor else [])


def target_text(config: LayoutConfig, example: Example) -> str:
    """What the receiver is to write."""
    answer = example.answers[0].strip()
    if config.target == "answer":
        return answer
    asked = example.question or content_text(config, example)
    return f"{asked.strip()}{config.anchor} {answer}"


def asked_pair(config: LayoutConfig, example: Example) -> tuple[str, str]:
    """What the receiver is asked of an example, and what it is to write."""
    return example.question, target_text(config, example)


def written(config: LayoutConfig, example: Example) -> Example:
    """The example with what the receiver is to write for its answer."""
    if config.target == "answer":
        return example
    return replace(example, answers=(target_text(config, example),))


def answer_text(answer: str, first: bool = False) -> str:
    """The answer as it follows the anchor: the space belongs to the answer.

    first: it is the first text after a BOS, and needs no space.
    """
    return ("" if first else " ") + answer.strip()


@dataclass(frozen=True)
class Asked:
    """Token ids of one question: `ask` (question and anchor) and `answer`, EOS included."""

    ask: list[int]
    answer: list[int]


def split_joint(
    config: LayoutConfig, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[Asked | None]:
    """Ask and answer ids of (question, answer) pairs, from the joint tokenisation; None where no
    token ends where the anchor ends."""
    asks = [ask_text(config, tokenizer, q) for q, _ in pairs]
    first = config.bos == "after_message"
    answers = [answer_text(a, first and not x) for x, (_, a) in zip(asks, pairs, strict=True)]
    apart = tokenizer.encode_all(asks)
    if config.bos_after_anchor:
        return [
            Asked(ask_ids(config, tokenizer, x), y + [tokenizer.eos_id])
            for x, y in zip(apart, tokenizer.encode_all(answers), strict=True)
        ]
    joint = tokenizer.encode_all([x + y for x, y in zip(asks, answers, strict=True)])
    return [
        Asked(ask_ids(config, tokenizer, ask), ids[len(ask) :] + [tokenizer.eos_id])
        if ids[: len(ask)] == ask and len(ids) > len(ask)
        else None
        for ids, ask in zip(joint, apart, strict=True)
    ]


def first_word(tokenizer: Tokenizer, answer: Sequence[int]) -> int:
    """Index of the first token of an answer that is no space: a space that all answers share would
    make the first token look easy, and training on it teaches nothing."""
    for i, token in enumerate(answer):
        if tokenizer.backend.decode([token]).strip():
            return i
    return 0


def check_labels(config: LayoutConfig, tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """The start-up proof that labels are the joint tokenisation's answer tokens.

    See docs/design.md section 3.

    For every example: ask + answer ids are the tokens of the one string, decode back to the answer,
    and end in the EOS id. Returns how many were checked.

    Raises:
        UserError: a label differs; names the receiver and the text.
    """
    pairs = [asked_pair(config, e) for e in examples]
    for (question, answer), asked in zip(pairs, split_joint(config, tokenizer, pairs), strict=True):
        text = ask_text(config, tokenizer, question) + answer_text(answer)
        if asked is None:
            raise UserError(
                f"receivers.{tokenizer.name}: its tokenizer merges the anchor {config.anchor!r} "
                f"with the answer in {text[-40:]!r}; choose an anchor that ends at a token boundary"
            )
        back = tokenizer.backend.decode(asked.answer[:-1], skip_special_tokens=False)
        if back.strip() != answer.strip() or asked.answer[-1] != tokenizer.eos_id:
            raise UserError(
                f"receivers.{tokenizer.name}: labels of {answer!r} decode to {back!r}; "
                "its tokenizer does not give the text back"
            )
    return len(pairs)
