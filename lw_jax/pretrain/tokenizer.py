"""Byte-level BPE tokenizers for the small models, saved as ordinary Hugging Face tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer

from lw_jax.errors import UserError

# A space belongs to the word, number or mark after it; a line break is separate.
_WORDS = r"\n| ?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+|[^\S\n]+(?!\S)|[^\S\n]"
WORDS = _WORDS.format(digits=r" ?\p{N}+")
WORDS_SINGLE_DIGITS = _WORDS.format(digits=r" ?\p{N}")

# Qwen2's own. transformers always rebuilds a qwen2 tokenizer with it (and NFC).
WORDS_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Special(NamedTuple):
    """A family's special tokens.

    Attributes:
        tokens: all of them, in the order of their ids.
        bos: begins a sequence; None: there is none (Qwen2).
        eos: ends a sequence.
        pad: padding.
        unk: unknown token; None: there is none.
        tokenizer_class: the class in transformers.
    """

    tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    unk: str | None
    tokenizer_class: str


_SENTENCEPIECE = Special(
    ("<unk>", "<s>", "</s>"), "<s>", "</s>", "</s>", "<unk>", "PreTrainedTokenizerFast"
)
SPECIAL = {
    "llama": _SENTENCEPIECE,
    "mistral": _SENTENCEPIECE,
    "qwen2": Special(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        "<|endoftext|>",
        None,
        "Qwen2Tokenizer",
    ),
}
"""By `model_type` of config.json."""


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, family: str, single_digits: bool = False
) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens, the same for the same texts.

    In a text that ends in ":", a following " x" is always a separate token.

    Args:
        texts: texts to train on.
        vocab_size: entries, special tokens included.
        family: `llama`, `mistral` or `qwen2`.
        single_digits: whether every digit is a token of its own (the first may include the space;
            in Qwen2 the space is separate).

    Raises:
        UserError: unknown family, Qwen2 without `single_digits`, a size the texts cannot fill.
    """
    special = family_tokens(family)
    tokenizer = Tokenizer(models.BPE())
    words = WORDS_SINGLE_DIGITS if single_digits else WORDS
    if family == "qwen2":
        if not single_digits:
            raise UserError("tokenizer: qwen2 always splits digits; set single_digits: true")
        words = WORDS_QWEN2
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in special.tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"tokenizer: {vocab_size} tokens asked for, the texts give "
            f"{tokenizer.get_vocab_size()} (256 bytes and {len(special.tokens)} special tokens at "
            "least); give another size or more text"
        )
    if special.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special.bos} $A",
            pair=f"{special.bos} $A {special.bos} $B",
            special_tokens=[(special.bos, tokenizer.token_to_id(special.bos))],
        )
    return tokenizer


def family_tokens(family: str) -> Special:
    """The special tokens of a family.

    Raises:
        UserError: unknown family.
    """
    if family not in SPECIAL:
        raise UserError(f"tokenizer: unknown family {family!r}; known are {', '.join(SPECIAL)}")
    return SPECIAL[family]


def special_ids(tokenizer: Tokenizer, family: str) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as a model's config.json holds them."""
    special = family_tokens(family)
    return {
        "bos_token_id": None if special.bos is None else tokenizer.token_to_id(special.bos),
        "eos_token_id": tokenizer.token_to_id(special.eos),
        "pad_token_id": tokenizer.token_to_id(special.pad),
    }


def save_tokenizer(
    tokenizer: Tokenizer, family: str, directory: str | Path, max_length: int
) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads.

    Args:
        tokenizer: the tokenizer.
        family: `llama`, `mistral` or `qwen2`.
        directory: where the files go.
        max_length: context length of the model.
    """
    special = family_tokens(family)
    config = {
        "add_prefix_space": False,
        "bos_token": special.bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": special.eos,
        "model_max_length": max_length,
        "pad_token": special.pad,
        "tokenizer_class": special.tokenizer_class,
        "unk_token": special.unk,
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
