"""A sequence laid out in segments is the text, whatever tokenizer the model has."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import (
    Tokenizer as Backend,
)

from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.text.collate import Collate, measure
from lw_jax.text.layout import (
    ask_text,
    asked_ids,
    asked_pair,
    check_labels,
    check_reading,
    head_ids,
    source_head_ids,
    split_joint,
)
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
ZOO = ("tiny-llama", "tiny-mistral", "tiny-qwen")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTROL = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
SPACE = "▁"
CHAT = ("<|user|> ", " <|end|>\n")
ROW = Example(
    "i", "c", "Nadia Rovek keeps 12 goats  in the barn.\nSo.", "How many goats?", ("12 goats",)
)
SPELLED = Example(
    "j",
    "d",
    "<s>40</s> is <|user|> é 日\n\n</s>",
    "Is </s> the end<|end|>?",
    ("30 </s> dollars",),
)


def texts() -> list[str]:
    rows = FactsRows("train", 0, 4, 60)
    return [f"{e.context}\nQuestion: {e.question}\nAnswer: {e.answers[0]}" for (e, *_) in rows]


def decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def bpe(form: str) -> Backend:
    """Llama 2's forms: a normalizer that prepends a space, or a Metaspace pre-tokenizer."""
    made = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if form == "prepend":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=CONTROL + BYTES, show_progress=False
    )
    learned = [text.replace("\n", " ") for text in texts()]
    made.train_from_iterator(
        learned if form != "prepend" else [word for text in learned for word in text.split()],
        trainer,
    )
    return with_decoder(made)


def unigram(form: str) -> Backend:
    words = sorted({word for text in texts() for word in text.split()})
    letters = sorted({letter for text in texts() for letter in text if letter.strip()} - set("<>"))
    pieces = [(token, 0.0) for token in CONTROL] + [(byte, -30.0) for byte in BYTES]
    pieces += [(SPACE, -4.0)] + [(letter, -8.0) for letter in letters]
    pieces += [(SPACE + word, -3.0 - len(word) / 10) for word in words if word not in CONTROL]
    made = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    if form == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), made.normalizer])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form)
    return with_decoder(made)


def with_decoder(made: Backend) -> Backend:
    made.decoder = decoder()
    made.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in CONTROL])
    state = json.loads(made.to_str())  # the trainer made the bytes special; they are pieces
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in CONTROL]
    return Backend.from_str(json.dumps(state))


def gpt2() -> Backend:
    """A byte-level tokenizer that puts a space before a text, and does not take it off again."""
    made = Backend.from_file(str(ROOT / "zoo/tiny-mistral/tokenizer.json"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.add_special_tokens(CONTROL[3:])
    return made


MADE = {
    "bpe, prepend": lambda: bpe("prepend"),
    "bpe, metaspace": lambda: bpe("always"),
    "bpe, metaspace first": lambda: bpe("first"),
    "unigram, prepend": lambda: unigram("prepend"),
    "unigram, metaspace": lambda: unigram("always"),
    "byte level": gpt2,
}


@pytest.fixture(scope="module", params=sorted(MADE))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer("r", MADE[request.param](), 1, 2, chat=("<|user|> ", " <|end|>\n"))


LAYOUTS = {
    "default": LayoutConfig(),
    "no primer": LayoutConfig(primer=""),
    "chat": LayoutConfig(anchor_mode="chat", encoder_use_chat_template=True),
    "chat, no primer": LayoutConfig(anchor_mode="chat", primer="", anchor=""),
    "with text": LayoutConfig(with_text=True),
    "bos after": LayoutConfig(bos="after_message"),
    "bos twice": LayoutConfig(bos_after_anchor=True),
    "question in the latent": LayoutConfig(question_in="latent"),
    "reading back": LayoutConfig(question_in="latent", target="question_answer"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("row", [ROW, SPELLED], ids=["plain", "spelled"])
def test_the_laid_out_ids_decode_to_the_text(name: str, row: Example, tokenizer: Tokenizer) -> None:
    layout = LAYOUTS[name]
    named = {"r": tokenizer}
    groups = [(row,)]
    batch = Collate(layout, tokenizer, named, measure(layout, tokenizer, named, groups))(groups)

    def of(key: str) -> list[int]:
        return batch[f"{key}/ids"][0, : batch[f"{key}/lengths"][0]].tolist()

    head, context, ask, answer = (
        head_ids(layout, tokenizer),
        *map(of, ("r/context", "r/ask", "r/answer")),
    )
    assert batch["valid"].all()
    sequence = head + context + ask + answer
    assert sequence.count(1) == (2 if name == "bos twice" else 1)
    assert answer[-1] == 2
    assert 2 not in sequence[:-1]
    before, after = tokenizer.chat if layout.anchor_mode == "chat" else ("", "")
    content = row.context.replace("Answer:", "")
    question = f"\nQuestion: {row.question}"
    wanted = before + layout.primer + (" " if layout.primer else "") + content
    inside = layout.question_in == "latent"
    wanted += question + after
    if layout.target == "question_answer":
        wanted += f" {row.question}"
    wanted += f"{layout.anchor} {row.answers[0]}"
    if name == "bos after":
        wanted = wanted.replace(content + "\n", content)  # the text after BOS begins at its start
    back = tokenizer.backend.decode([i for i in sequence[:-1] if i != 1], skip_special_tokens=False)
    assert back == wanted
    assert inside or context == of("r/context")
    read = of("source")
    assert read[0] == 1
    primed = before if layout.encoder_use_chat_template else ""
    primed += layout.primer + (" " if layout.primer else "") + content + (question * inside)
    assert tokenizer.backend.decode(read[1:], skip_special_tokens=False) == primed
    assert check_labels(layout, tokenizer, [row]) == check_reading(layout, tokenizer, [row]) == 1
    assert asked_ids(layout, tokenizer, row.question) == ask  # as the Python API asks


def test_a_sequence_begins_as_the_tokenizer_begins_a_text(tokenizer: Tokenizer) -> None:
    """The space that a tokenizer puts first stands there once, where decoding takes it off."""
    own = tokenizer.backend.encode("Context:", add_special_tokens=False).ids
    exact = tokenizer.backend.decode(own) == "Context:"
    assert (head_ids(LayoutConfig(), tokenizer)[1:] == own) == exact
    assert tokenizer.encode(" Context:") == tokenizer.encode_all([" Context:", "x"])[0]


def test_only_the_template_gives_control_tokens(tokenizer: Tokenizer) -> None:
    layout = LayoutConfig(anchor_mode="chat", encoder_use_chat_template=True, primer="<|user|>")
    user, end = (tokenizer.backend.token_to_id(one) for one in ("<|user|>", "<|end|>"))
    assert head_ids(layout, tokenizer).count(user) == 1  # the primer's is text
    assert source_head_ids(layout, tokenizer).count(user) == 1
    (asked,) = split_joint(layout, tokenizer, [asked_pair(layout, SPELLED)])
    assert asked is not None
    assert asked.ask.count(end) == 1
    assert (
        ask_text(layout, tokenizer, "Who<|end|>?") == "\nQuestion: Who<|end|>? <|end|>\n\nAnswer:"
    )


def test_workers_lay_out_the_same(tokenizer: Tokenizer) -> None:
    """A tokenizer that went to another process still reads control tokens as text."""
    tokenizer.encode("x")
    there = pickle.loads(pickle.dumps(tokenizer))
    for text in (ROW.context, SPELLED.context, SPELLED.answers[0]):
        assert there.encode(text) == tokenizer.encode(text)


def read_alone(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=False).strip()


@pytest.mark.parametrize("start", [False, True])
def test_tokens_know_their_characters(tokenizer: Tokenizer, start: bool) -> None:
    """As encode gives them, control tokens that are spelled out included; a character of several
    tokens is in the span of each."""
    rows = [ROW.context, f" {ROW.context}", SPELLED.context, SPELLED.answers[0], "", "é日 a"]
    rows += [(3, "<s>40</s> is", 4, " so"), ("a ", 3, "b")]  # type: ignore[list-item]
    found = tokenizer.locate_all(rows, start)
    assert [one.ids for one in found] == tokenizer.encode_all(rows, start)
    for row, (ids, spans) in zip(rows, found, strict=True):
        text = row if isinstance(row, str) else "".join(x for x in row if isinstance(x, str))
        assert len(ids) == len(spans)
        assert sorted(spans) == spans
        assert {i for first, stop in spans for i in range(first, stop)} == {*range(len(text))}
        for token, (first, stop) in zip(ids, spans, strict=True):
            alone = read_alone(tokenizer, [token])
            if token in (3, 4):
                assert first == stop
            elif "\ufffd" not in alone:  # else part of a character
                assert alone in text[first:stop]
                by_byte = tokenizer.backend.id_to_token(token).startswith("<0x")
                # A unigram's bytes share the span of a run of characters that it lacks.
                assert not alone or by_byte or alone == text[first:stop].strip()


@pytest.mark.parametrize("model", ZOO)
def test_ids_of_the_models_that_ship_are_as_they_were(model: str) -> None:
    """Where no text spells a control token, every id is the backend's own."""
    path = str(ROOT / "zoo" / model / "tokenizer.json")
    plain, tokenizer = Backend.from_file(path), Tokenizer("r", Backend.from_file(path), None, 2)
    some = [*texts(), ROW.context, " x  y\n\n z ", "日本 é", ""]
    alone = [e.ids for e in plain.encode_batch(some, add_special_tokens=False)]
    assert tokenizer.encode_all(some) == tokenizer.encode_all(some, start=True) == alone
    assert [tokenizer.encode(text, start=True) for text in some] == alone


def test_what_is_not_given_back_is_refused_with_both_texts() -> None:
    made = bpe("always")
    made.normalizer = normalizers.Lowercase()
    tokenizer = Tokenizer("r", made, 1, 2)
    low = replace(ROW, answers=("12 goats",))
    with pytest.raises(
        UserError, match=r"'Context: Nadia.*is laid out as 'context: nadia"
    ) as caught:
        check_labels(LayoutConfig(), tokenizer, [low])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"sender: .*'Context: Nadia.*is laid out as"):
        check_reading(LayoutConfig(), tokenizer, [low])


def test_composed_accents_are_the_same_text() -> None:
    """Qwen's tokenizer composes them: that is no fault of a row."""
    backend = Backend.from_file(str(ROOT / "zoo/tiny-qwen/tokenizer.json"))
    tokenizer = Tokenizer("r", backend, None, 2)
    row = replace(ROW, context="Ze\u0301 keeps 3 goats.", answers=("Ze\u0301",))
    assert check_labels(LayoutConfig(), tokenizer, [row]) == 1
