"""How well a frozen model reads plain text: what a receiver must be able to do before any bridge.

The one code that asks receivers (`lw_jax.receiver.answer`) lays out the prompts and writes the
answers, so a figure here equals the `text` method of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.data import facts
from lw_jax.data.example import Example
from lw_jax.evaluate.bootstrap import interval
from lw_jax.evaluate.metrics.entities import transferred
from lw_jax.evaluate.metrics.squad import exact_match
from lw_jax.models.arch import Arch
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.pretrain.batches import REST, Tokens, pad
from lw_jax.pretrain.step import score_tokens
from lw_jax.receiver.answer import answers
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.types import PyTree

Figure = dict[str, Any]


def read_facts(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> Figure:
    """Exact match of greedy answers given the text: `{"em", "ci", "n"}`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        examples: questions on facts.
        batch_size: examples in a batch.
        seed: seed of the bootstrap.
    """
    longest = 2 + max(len(tokenizer.encode(" " + e.answers[0])) for e in examples)
    stop = facts.Config().stop
    said = answers(model, tokenizer, LayoutConfig(), examples, batch_size, longest, stop=stop)
    right = [exact_match(text, e.answers) for text, e in zip(said, examples, strict=True)]
    contexts = [e.context_id for e in examples]
    low_high = interval(right, groups=contexts, seed=seed, bounds=(0, 1))
    return {"em": float(np.mean(right)), "ci": list(low_high), "n": len(right)}


def read_back(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    layout: LayoutConfig,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> Figure:
    """Share of a text's numbers and names in what is read back: `{"recall", "ci", "n", ...}`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        layout: layout of the task.
        examples: examples whose first answer is the text itself.
        batch_size: examples in a batch.
        seed: seed of the bootstrap.
    """
    longest = 1 + max(len(ids) for ids in tokenizer.encode_all([e.context for e in examples]))
    said = answers(model, tokenizer, layout, examples, batch_size, longest)
    counts = [transferred(e.context, text) for text, e in zip(said, examples, strict=True)]
    figure: Figure = {"n": len(counts)}
    for kind, name in (("entities", "recall"), ("numbers", "numbers"), ("names", "names")):
        hits = np.array([c[kind] for c in counts], np.float64)
        figure[name] = float(hits[:, 0].sum() / max(1.0, hits[:, 1].sum()))
        if kind == "entities":
            figure["ci"] = list(interval(hits[:, 0], hits[:, 1], seed=seed, bounds=(0, 1)))
            figure["entities"] = int(hits[:, 1].sum())
    whole = [text.strip() == e.context.strip() for text, e in zip(said, examples, strict=True)]
    return figure | {"verbatim": float(np.mean(whole))}


def bits_per_byte(
    model: FrozenDecoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    batch_size: int,
    max_tokens: int,
    seed: int,
) -> Figure:
    """Bits per UTF-8 byte of plain texts: `{"bits", "ci", "n", "left_out"}`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        texts: the texts.
        batch_size: texts in a batch.
        max_tokens: longer texts are left out.
        seed: seed of the bootstrap.
    """
    bos = [
        tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ]  # predicts the first token
    ids = [bos + row for row in tokenizer.encode_all(texts)]
    kept = [i for i, row in enumerate(ids) if 1 < len(row) <= max_tokens]
    kept.sort(key=lambda i: len(ids[i]))
    bits: list[float] = []
    for begin in range(0, len(kept), batch_size):
        rows = [Tokens(ids[i], [REST] * len(ids[i])) for i in kept[begin : begin + batch_size]]
        batch = pad(rows + rows[:1] * (batch_size - len(rows)))
        bits += jax.device_get(_bits(model.params, batch, arch=model.arch))[: len(rows)].tolist()
    size = [len(texts[i].encode()) for i in kept]
    return {
        "bits": float(np.sum(bits) / max(1, np.sum(size))),
        "ci": list(interval(bits, size, seed=seed)),
        "n": len(kept),
        "left_out": len(texts) - len(kept),
    }


@partial(jax.jit, static_argnames=("arch",))
def _bits(params: PyTree, batch: Any, *, arch: Arch) -> jax.Array:
    scores, real = score_tokens(arch, params, batch, params["embed"].dtype)
    return jnp.sum(jnp.where(real, scores.nll, 0.0), axis=1) / jnp.log(2.0)
