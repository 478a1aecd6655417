"""From text to the segments of the receiver's sequence (docs/design.md section 3), on the host.

    [BOS] [primer] | [message] | [question] [anchor] | [answer] [EOS]
        head       |           |        ask          |    answer

BOS can also come after the message, and the answer can begin with the question. Head, message and
ask are tokenised separately; ask and answer together, so that the labels are the tokens of the
whole string. No jax here: worker processes prepare batches with it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Encoded, Pieces, Tokenizer


def _chat(config: LayoutConfig, tokenizer: Tokenizer) -> tuple[str, str]:
    if config.anchor_mode != "chat":
        return "", ""
    if tokenizer.chat is None:
        raise UserError(
            f"layout.anchor_mode: the tokenizer of {tokenizer.name} has no chat template, or none "
            "that writes a user's message once, as it is; use anchor_mode: text"
        )
    return tokenizer.chat


def head_ids(config: LayoutConfig, tokenizer: Tokenizer) -> list[int]:
    """[BOS] and primer of a receiver; no BOS if it comes after the message."""
    bos = _bos(tokenizer) if config.bos == "start" else []
    return bos + tokenizer.encode(_head(config, tokenizer), start=True)


def _head(config: LayoutConfig, tokenizer: Tokenizer) -> Pieces:
    """What stands before the message, BOS aside."""
    return (*tokenizer.literal(_chat(config, tokenizer)[0]), config.primer)


def _empty(pieces: Pieces) -> bool:
    """Whether there is neither text nor a control token."""
    return all(one == "" for one in pieces)


def message_ids(
    config: LayoutConfig, tokenizer: Tokenizer, messages: Sequence[str]
) -> list[list[int]]:
    """Ids of messages in words, as they follow the head."""
    return tokenizer.encode_all(messages, start=_empty(_head(config, tokenizer)))


def located_messages(
    config: LayoutConfig, tokenizer: Tokenizer, examples: Sequence[Example]
) -> list[Encoded]:
    """Tokens of messages as `message_ids` gives them; their spans count from the content's first
    character, so those of a space before it are negative.
    """
    found = tokenizer.locate_all(
        [message_text(config, e) for e in examples], start=_empty(_head(config, tokenizer))
    )
    lead = len(_lead(config.primer))
    return [_from(lead, one) for one in found]


@dataclass(frozen=True)
class Prompt:
    """What a layout puts around the message in one receiver's sequence.

    It is hashable, so that it can be static in jitted functions.

    Attributes:
        head: ids of [BOS] and primer, which come first.
        with_text: whether the text follows what is delivered, so that the receiver reads both.
        transform: change of the soft tokens that are delivered; None: none.
    """

    head: tuple[int, ...] = ()
    with_text: bool = False
    transform: str | None = None


def prompts_of(config: LayoutConfig, receivers: Mapping[str, Tokenizer]) -> dict[str, Prompt]:
    """What a layout puts around the message, for every receiver.

    Raises:
        UserError: the layout needs a chat template, and a receiver has none.
    """
    return {
        name: Prompt(tuple(head_ids(config, tokenizer)), config.with_text, config.transform)
        for name, tokenizer in receivers.items()
    }


def source_head_ids(config: LayoutConfig, tokenizer: Tokenizer) -> list[int]:
    """Ids that the sender reads before the text: its [BOS], and a primer.

    Raises:
        UserError: the sender is to read a user's turn, and has no chat template.
    """
    return _bos(tokenizer) + tokenizer.encode(_source_head(config, tokenizer), start=True)


def source_ids(config: LayoutConfig, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of the texts that the sender reads, as they follow its head."""
    return tokenizer.encode_all(texts, start=_empty(_source_head(config, tokenizer)))


def located_sources(
    config: LayoutConfig, tokenizer: Tokenizer, examples: Sequence[Example]
) -> list[Encoded]:
    """Tokens of the texts that the sender reads as `source_ids` gives them, with the spans of
    `located_messages`.
    """
    found = tokenizer.locate_all(
        [source_text(config, e) for e in examples], start=_empty(_source_head(config, tokenizer))
    )
    lead = len(_lead(_source_primer(config)))
    return [_from(lead, one) for one in found]


def _from(lead: int, text: Encoded) -> Encoded:
    """The same with spans that count from the character `lead`."""
    return Encoded(text.ids, [(first - lead, stop - lead) for first, stop in text.spans])


def _source_head(config: LayoutConfig, tokenizer: Tokenizer) -> Pieces:
    """What the sender reads before the text, BOS aside."""
    before = ""
    if config.encoder_use_chat_template:
        if tokenizer.chat is None:
            raise UserError(
                f"layout.encoder_use_chat_template: the tokenizer of {tokenizer.name} has no chat "
                "template, or none that writes a user's message once, as it is; set it to false"
            )
        before = tokenizer.chat[0]
    return (*tokenizer.literal(before), _source_primer(config))


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _source_primer(config: LayoutConfig) -> str:
    return config.primer if config.source_primer is None else config.source_primer


def content_text(config: LayoutConfig, example: Example) -> str:
    """The text that the latent replaces, with the question if that travels in the latent.

    The literal of the anchor is removed from the text.
    """
    text = example.context
    if config.anchor_mode != "none" and config.anchor.strip():
        text = text.replace(config.anchor.strip(), "").strip()
    if config.question_in == "latent" and config.question and example.question:
        text += config.question.format(question=example.question)
    return text


def message_text(config: LayoutConfig, example: Example) -> str:
    """The content as a receiver is given it in words."""
    return _lead(config.primer) + content_text(config, example)


def _lead(primer: str) -> str:
    """What stands between a primer and the content."""
    return " " if primer else ""


def source_text(config: LayoutConfig, example: Example) -> str:
    """The content in words, for the sender."""
    return _lead(_source_primer(config)) + content_text(config, example)


def ask_text(config: LayoutConfig, tokenizer: Tokenizer, question: str) -> str:
    """Question and anchor; without the anchor if the receiver writes it."""
    return tokenizer.spelled(_ask(config, tokenizer, question))


def asked_ids(config: LayoutConfig, tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids of question and anchor, BOS included where the layout has it there.

    Raises:
        UserError: BOS is to come after the message, and the receiver has none.
    """
    return ask_ids(config, tokenizer, tokenizer.encode(_ask(config, tokenizer, question)))


def _ask(config: LayoutConfig, tokenizer: Tokenizer, question: str) -> Pieces:
    """Question and anchor: the chat template's control tokens as ids, all else as text."""
    _, after = _chat(config, tokenizer)
    asked = ""
    if config.question and question and config.question_in == "receiver":
        asked = config.question.format(question=question)
    anchored = config.anchor_mode != "none" and config.target == "answer"
    anchor = config.anchor if anchored else ""
    if config.bos == "after_message":  # never with a chat template
        return ((asked + anchor).lstrip(),)
    return (asked, *tokenizer.literal(after), anchor)


def ask_ids(config: LayoutConfig, tokenizer: Tokenizer, asked: Sequence[int]) -> list[int]:
    """Ids of question and anchor, with a BOS before or after them if the layout asks for it.

    Args:
        config: the layout.
        tokenizer: the receiver's tokenizer.
        asked: ids of question and anchor.

    Raises:
        UserError: BOS is to come after the message, and the receiver has none.
    """
    if config.bos == "after_message" and tokenizer.bos_id is None:
        raise UserError(f"layout.bos: receivers.{tokenizer.name} has no BOS token; use bos: start")
    first = _bos(tokenizer) if config.bos == "after_message" else []
    return first + list(asked) + (_bos(tokenizer) if config.bos_after_anchor else [])


def target_text(config: LayoutConfig, example: Example) -> str:
    """The text that the receiver has to write."""
    answer = example.answers[0].strip()
    if config.target == "answer":
        return answer
    asked = example.question or content_text(config, example)
    return f"{asked.strip()}{config.anchor} {answer}"


def asked_pair(config: LayoutConfig, example: Example) -> tuple[str, str]:
    """The question that the receiver is asked, and the text that it has to write."""
    return example.question, target_text(config, example)


def written(config: LayoutConfig, example: Example) -> Example:
    """The example whose answer is the text that the receiver has to write."""
    if config.target == "answer":
        return example
    return replace(example, answers=(target_text(config, example),))


def answer_text(answer: str, first: bool = False) -> str:
    """The answer as it follows the anchor: the space belongs to the answer.

    Args:
        answer: the answer.
        first: whether it is the first text after a BOS, and needs no space.
    """
    return ("" if first else " ") + answer.strip()


@dataclass(frozen=True)
class Asked:
    """Token ids of one question.

    Attributes:
        ask: question and anchor.
        answer: the answer, EOS included.
    """

    ask: list[int]
    answer: list[int]


def split_joint(
    config: LayoutConfig, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[Asked | None]:
    """Ask and answer ids, from the tokens of the whole string.

    Args:
        config: the layout.
        tokenizer: the receiver's tokenizer.
        pairs: (question, answer) pairs.

    Returns:
        For each pair its ids; None if no token ends where the anchor ends.
    """
    asks = [_ask(config, tokenizer, q) for q, _ in pairs]
    first = config.bos == "after_message"
    answers = [answer_text(a, first and _empty(x)) for x, (_, a) in zip(asks, pairs, strict=True)]
    apart = tokenizer.encode_all(asks)
    if config.bos_after_anchor:
        return [
            Asked(ask_ids(config, tokenizer, x), y + [tokenizer.eos_id])
            for x, y in zip(apart, tokenizer.encode_all(answers), strict=True)
        ]
    joint = tokenizer.encode_all([(*x, y) for x, y in zip(asks, answers, strict=True)])
    return [
        Asked(ask_ids(config, tokenizer, ask), ids[len(ask) :] + [tokenizer.eos_id])
        if ids[: len(ask)] == ask and len(ids) > len(ask)
        else None
        for ids, ask in zip(joint, apart, strict=True)
    ]


def first_word(tokenizer: Tokenizer, answer: Sequence[int]) -> int:
    """Index of the first token of an answer that is not a space.

    A space that all answers share would make the first token look easy, and training on it teaches
    nothing.
    """
    for i, token in enumerate(answer):
        if tokenizer.backend.decode([token]).strip():
            return i
    return 0


def check_labels(config: LayoutConfig, tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """Checks at start-up that a receiver's sequence is the text that was to be laid out.

    See docs/design.md section 3. For every example, the ids of ask and answer must be the tokens of
    the joined string, decode back to the answer, and end in the only EOS id; and all ids together
    must decode to primer, message, question, anchor and answer. Texts that differ only as Unicode's
    canonical forms do are the same: some tokenizers compose accents.

    Returns:
        The number of examples that were checked.

    Raises:
        UserError: a text differs; names the receiver and both texts.
    """
    pairs = [asked_pair(config, e) for e in examples]
    head = list(_head(config, tokenizer))
    begin = head_ids(config, tokenizer)[len(_bos(tokenizer)) if config.bos == "start" else 0 :]
    messages = [message_text(config, e) for e in examples]
    contexts = message_ids(config, tokenizer, messages)
    first = config.bos == "after_message"
    rows = zip(pairs, split_joint(config, tokenizer, pairs), messages, contexts, strict=True)
    for (question, answer), asked, message, context in rows:
        ask = _ask(config, tokenizer, question)
        if asked is None:
            text = tokenizer.spelled(ask) + answer_text(answer)
            raise UserError(
                f"receivers.{tokenizer.name}: its tokenizer merges the anchor {config.anchor!r} "
                f"with the answer in {text[-40:]!r}; choose an anchor that ends at a token boundary"
            )
        written = asked.answer[:-1]
        back = tokenizer.backend.decode(written, skip_special_tokens=False)
        if (
            not _same(back.strip(), answer.strip())
            or asked.answer[-1] != tokenizer.eos_id
            or tokenizer.eos_id in written
        ):
            raise UserError(
                f"receivers.{tokenizer.name}: labels of {answer!r} decode to {back!r}; "
                "its tokenizer does not give the text back"
            )
        after = len(_bos(tokenizer)) if config.bos_after_anchor else 0
        before = len(_bos(tokenizer)) if first else 0
        body = asked.ask[before : len(asked.ask) - after]
        said = answer_text(answer, first and _empty(ask))
        _check_text(
            f"receivers.{tokenizer.name}",
            tokenizer,
            [*begin, *context, *body, *written],
            tokenizer.spelled([*head, message, *ask, said]),
        )
    return len(pairs)


def check_reading(config: LayoutConfig, tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """Checks at start-up that what the sender reads is its head and the text.

    A sentence encoder's tokenizer (with a `tail`) never gives a text back, and is not checked.

    Args:
        config: the layout.
        tokenizer: the tokenizer of a source.
        examples: rows of the data.

    Returns:
        The number of examples that were checked.

    Raises:
        UserError: a text differs; names both texts.
    """
    if tokenizer.tail:
        return 0
    head = list(_source_head(config, tokenizer))
    begin = source_head_ids(config, tokenizer)[len(_bos(tokenizer)) :]
    texts = [source_text(config, e) for e in examples]
    for text, ids in zip(texts, source_ids(config, tokenizer, texts), strict=True):
        _check_text("sender", tokenizer, [*begin, *ids], tokenizer.spelled([*head, text]))
    return len(texts)


def _check_text(where: str, tokenizer: Tokenizer, ids: Sequence[int], text: str) -> None:
    """Raises UserError unless ids decode to a text."""
    back = tokenizer.backend.decode(list(ids), skip_special_tokens=False)
    if _same(back, text):
        return
    pairs = enumerate(zip(back, text, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(back), len(text)))
    begin = max(0, at - 30)
    raise UserError(
        f"{where}: its tokenizer does not give the text back: "
        f"{text[begin : at + 30]!r} is laid out as {back[begin : at + 30]!r}; use another model, "
        "or write the layout's texts and the rows without what it changes"
    )


def _same(a: str, b: str) -> bool:
    return a == b or unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)
