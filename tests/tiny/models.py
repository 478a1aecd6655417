"""Random models of a few thousand parameters, written as ordinary Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

from lw_jax.data.facts import FactsRows
from lw_jax.models.save import save_pretrained
from lw_jax.pretrain.tokenizer import save_tokenizer, special_ids, train_bpe
from tests.tiny.arch import decoder, weights


def write_model(directory: Path, family: str, vocab: int = 300, width: int = 16) -> Path:
    """A model of two layers and its tokenizer, trained on some facts."""
    rows = FactsRows("train", 0, 2, 50)
    texts = [e.context for i in range(len(rows)) for e in rows[i][:1]]
    tokenizer = train_bpe(texts, vocab, family=family, single_digits=family != "llama")
    ids = special_ids(tokenizer, family)
    arch = decoder(
        family=family,
        vocab_size=vocab,
        width=width,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=2 * width,
        qkv_bias=family == "qwen2",
        max_positions=512,
        bos_id=ids["bos_token_id"],
        eos_ids=(ids["eos_token_id"] or 0,),
        init_std=0.2,
    )
    save_pretrained(directory, arch, weights(arch, 0))
    save_tokenizer(tokenizer, family, directory, arch.max_positions)
    return directory
