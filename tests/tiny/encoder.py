"""A random sentence encoder of a few thousand parameters, written as a Hugging Face directory."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lw_jax.models.checkpoint import WEIGHTS
from lw_jax.models.encoder_arch import EncoderArch
from lw_jax.models.names import parts
from tests.tiny.arch import weights

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
WORDS = """keeps goats cats hens in the barn attic yard works as a an and is was of lives with
##ing ##er ##s ##ed""".split()


def word_pieces(vocab: int = 200) -> Tokenizer:
    """A lower-casing WordPiece of letters and a few words, cutting at 16 tokens and filling up to
    them, as the tokenizers of sentence-transformers do at 128."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    entries = [*SPECIAL.values(), *signs, *(f"##{sign}" for sign in signs), *WORDS]
    entries += [f"[unused{i}]" for i in range(vocab - len(entries))]
    ids = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def write_encoder(
    directory: Path,
    vocab: int = 200,
    width: int = 16,
    positions: int = 64,
    special: bool = True,
) -> Path:
    """An encoder of two layers and its tokenizer; `special`: it names [CLS] and [SEP]."""
    arch = EncoderArch(
        family="bert",
        vocab_size=vocab,
        width=width,
        layers=2,
        heads=4,
        mlp_width=2 * width,
        norm_eps=1e-12,
        activation="gelu",
        max_positions=positions,
        types=2,
        init_std=0.2,
    )
    directory.mkdir(parents=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.mlp_width,
        "max_position_embeddings": positions,
    }
    (directory / "config.json").write_text(json.dumps(config))
    params = weights(arch, 5)
    tensors = {
        part.name: part.to_stored(
            np.asarray(
                params[part.leaf] if part.layer is None else params["layers"][part.leaf][part.layer]
            )
        )
        for part in parts(arch)
    }
    save_file(tensors, directory / WEIGHTS)
    named = {k: v for k, v in SPECIAL.items() if special or k in ("pad_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=word_pieces(vocab), **named).save_pretrained(directory)
    return directory
