"""Byte-level BPE tokenizers: size, boundaries, round trip, and what AutoTokenizer makes of them."""

import json

import pytest
from transformers import AutoTokenizer

from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.pretrain.mixture import ANSWER, REPEAT
from lw_jax.pretrain.tokenizer import SPECIAL, save_tokenizer, special_ids, train_bpe

KINDS = [("llama", 700, False), ("mistral", 400, True), ("qwen2", 500, True)]
ODD = [
    "$5",
    "3.50%",
    "1,234",
    "é ü 漢字",
    "-7",
    "(a) b",
    "'tis",
    "x  y",
    "a\nb",
    "#### 12",
    "A/B",
    '"q"',
]


def facts(count=200):
    rows = FactsRows("train", 0, (1, 6), 10**6, questions=4)
    return [example for i in range(count) for example in rows[i]]


def texts():
    for example in facts():
        yield f"Context: {example.context}"
        yield f"\nQuestion: {example.question}{ANSWER} {example.answers[0]}"


@pytest.fixture(scope="module", params=KINDS, ids=[kind[0] for kind in KINDS])
def bpe(request):
    family, size, single = request.param
    return family, size, single, train_bpe(texts(), size, family=family, single_digits=single)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_the_answer_begins_at_a_token(bpe):
    """Jointly tokenised, anchor + " x" splits at the anchor: labels are the joint tokens."""
    tokenizer = bpe[3]
    pairs = [(f"\nQuestion: {e.question}{ANSWER}", e.answers[0]) for e in facts(60)]
    pairs += [(anchor, text) for anchor in (ANSWER, REPEAT) for text in ODD]
    pairs += [(REPEAT, e.context) for e in facts(10)]
    for ask, answer in pairs:
        joint, apart = ids(tokenizer, f"{ask} {answer}"), ids(tokenizer, ask)
        assert joint[: len(apart)] == apart
        assert joint[len(apart) :] == ids(tokenizer, f" {answer}")


def test_text_survives(bpe):
    for text in [*ODD, *(example.context for example in facts(20))]:
        assert bpe[3].decode(ids(bpe[3], text), skip_special_tokens=False) == text


def test_size_and_digits(bpe):
    _, size, single, tokenizer = bpe
    assert tokenizer.get_vocab_size() == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    longest = max(sum(c.isdigit() for c in token) for token in tokenizer.get_vocab())
    assert (longest == 1) == single
    assert "Ġdollars" in tokenizer.encode("for 4711 dollars").tokens


def test_a_line_break_stands_alone(bpe):
    if bpe[0] != "qwen2":  # Qwen2's own rule lets it follow a full stop
        tokens = bpe[3].encode("end.\n\nQuestion", add_special_tokens=False).tokens
        assert tokens.count("Ċ") == 2


def test_auto_tokenizer_reads_the_same(bpe, tmp_path):
    family, size, _, tokenizer = bpe
    save_tokenizer(tokenizer, family, tmp_path, max_length=512)
    config = {"model_type": family, "vocab_size": size, **special_ids(tokenizer, family)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *(example.context for example in facts(20))]:
        assert auto(text, add_special_tokens=False).input_ids == ids(tokenizer, text)
        assert auto(text).input_ids == tokenizer.encode(text).ids
        assert auto.decode(ids(tokenizer, text)) == text
    found = special_ids(tokenizer, family)
    assert auto.bos_token_id == found["bos_token_id"]
    assert auto.eos_token_id == found["eos_token_id"]
    assert auto.pad_token_id == found["pad_token_id"]
    assert (auto("x").input_ids[0] == auto.bos_token_id) == (family != "qwen2")
    assert auto.model_max_length == 512
    assert len(SPECIAL[family].tokens) == 3


def test_training_is_deterministic(bpe):
    family, size, single, tokenizer = bpe
    again = train_bpe(texts(), size, family=family, single_digits=single)
    assert again.to_str() == tokenizer.to_str()


@pytest.mark.parametrize(
    ("family", "size", "single", "message"),
    [
        ("gpt", 400, True, "unknown family 'gpt'; known are llama, mistral, qwen2"),
        ("qwen2", 400, False, "set single_digits: true"),
        ("llama", 200, True, "200 tokens asked for, the texts give 259"),
        ("llama", 100000, True, "100000 tokens asked for, the texts give"),
    ],
)
def test_wrong_requests_are_one_line(family, size, single, message):
    with pytest.raises(UserError, match=message) as error:
        train_bpe(["some text"], size, family=family, single_digits=single)
    assert "\n" not in str(error.value)
