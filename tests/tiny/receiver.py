"""Tiny random models and tokenizers that the receiver's and the bridge's tests share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import jax
from tokenizers import Tokenizer as Backend

from lw_jax.data.example import Example
from lw_jax.data.facts import FactsRows
from lw_jax.models.arch import Arch
from lw_jax.models.frozen import FrozenDecoder, FrozenModels, Sender
from lw_jax.models.params import init
from lw_jax.pretrain.tokenizer import special_ids, train_bpe
from lw_jax.text.layout import Prompt, prompts_of
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from tests.tiny.arch import decoder

LAYOUT = LayoutConfig()


@cache
def backend(family: str, vocab: int) -> Backend:
    rows = FactsRows("train", 0, 4, 400)
    texts = [
        f"Context: {e.context}\nQuestion: {e.question}\nAnswer: {e.answers[0]}"
        for i in range(200)
        for e in rows[i][:1]
    ]
    return train_bpe(texts, vocab, family=family, single_digits=True)


@cache
def text_tokenizer(family: str = "mistral", vocab: int = 320) -> Tokenizer:
    tok = backend(family, vocab)
    ids = special_ids(tok, family)
    eos = ids["eos_token_id"]
    assert eos is not None
    return Tokenizer(family, tok, ids["bos_token_id"], eos)


@cache
def arch(family: str = "mistral", vocab: int = 320) -> Arch:
    tokenizer = text_tokenizer(family, vocab)
    return decoder(
        family=family,
        vocab_size=vocab,
        width=24,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=6,
        mlp_width=32,
        qkv_bias=family == "qwen2",
        bos_id=tokenizer.bos_id,
        eos_ids=(tokenizer.eos_id,),
        init_std=0.3,
    )


@cache
def model(family: str = "mistral", vocab: int = 320, seed: int = 0) -> FrozenDecoder:
    made = arch(family, vocab)
    params = jax.jit(init, static_argnums=0)(made, jax.random.key(seed))
    return FrozenDecoder(params, made)


def prompt(family: str = "mistral", vocab: int = 320) -> Prompt:
    """What LAYOUT puts around the message of `model`."""
    return prompts_of(LAYOUT, {"r": text_tokenizer(family, vocab)})["r"]


def models_of(
    sender: Sender | None, receivers: Mapping[str, FrozenDecoder] | None = None
) -> FrozenModels:
    """A sender and receivers that are asked as LAYOUT says; by default one, `r`."""
    found = {"r": model()} if receivers is None else receivers
    return FrozenModels.of(sender, found, dict.fromkeys(found, prompt()))


def groups(count: int, level: int = 2, questions: int = 2) -> list[tuple[Example, ...]]:
    rows = FactsRows("train", 1, level, count, questions)
    return [rows[i] for i in range(count)]
