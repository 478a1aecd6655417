"""The final test of a small model: what its card says it can do, measured on what was saved."""

from __future__ import annotations

from typing import Any

from lw_jax.data import gsm8k
from lw_jax.data.facts import FactsRows
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.pretrain.competence import bits_per_byte, read_back, read_facts
from lw_jax.pretrain.config import PretrainConfig
from lw_jax.pretrain.mixture import REPEAT
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

LEVEL = 6
"""Sentences in a context of the facts test."""
BATCH = 64


def final_test(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    cfg: PretrainConfig,
    problems: gsm8k.Config | None,
    seed: int,
) -> dict[str, Any]:
    """Facts with new words from text, GSM8K questions read back, bits per byte of both."""
    read_by = model, tokenizer
    rows = FactsRows("eval", seed, LEVEL, cfg.eval_rows, questions=1)
    facts = [rows[i][0] for i in range(cfg.eval_rows)]
    figures: dict[str, Any] = {
        "facts": read_facts(*read_by, facts, BATCH, seed),
        "bits_per_byte": {
            "facts": bits_per_byte(
                *read_by, [e.context for e in facts], BATCH, cfg.max_tokens, seed
            )
        },
    }
    if problems is not None:
        read = problems.rows("eval", seed)
        copies = [group[0] for group in read.groups]
        figures["read_back"] = read_back(*read_by, LayoutConfig(anchor=REPEAT), copies, BATCH, seed)
        texts = [e.context for e in copies]
        figures["bits_per_byte"]["gsm8k"] = bits_per_byte(
            *read_by, texts, BATCH, cfg.max_tokens, seed
        )
    return figures
