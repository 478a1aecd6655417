"""Texts of a mixture in token ids, in batches of a few static lengths, prepared by processes.

A batch depends on (seed, step) alone. Steps are drawn in groups: a group's texts are parted into
short and long ones and cut into its batches, so that two shapes are compiled and little is padded,
and every batch still mixes the tasks.
No jax here: worker processes import this.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lw_jax.data.prefetch import ahead
from lw_jax.pretrain.mixture import MixtureRows, TextTask
from lw_jax.text.layout import head_ids, message_text, split_joint
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

GROUP = 8
"""Batches whose texts are parted together."""
SHORT = 0.5625
"""Texts up to this share of the longest allowed are short ones."""
MULTIPLE = 64
"""Static lengths of texts that are only scored are multiples of this many tokens."""
REST, ANSWER, WRITTEN = 0, 1, 2
"""Kinds of token: neither, of a question's answer, of a text written again (EOS included)."""

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tokens:
    """One text: its ids, and the kind of each (`REST`, `ANSWER`, `WRITTEN`)."""

    ids: list[int]
    kinds: list[int]


def tokenise(tokenizer: Tokenizer, tasks: Sequence[TextTask]) -> Tokens | None:
    """The receiver's sequence of a context and one or more tasks on it, each with its answer.

    The first task comes exactly as a receiver is asked; the others follow its EOS. None where an
    answer does not begin at a token boundary.
    """
    layout = LayoutConfig(anchor=tasks[0].anchor)
    ids = head_ids(layout, tokenizer) + tokenizer.encode(message_text(layout, tasks[0].example))
    kinds = [REST] * len(ids)
    kind = ANSWER if tasks[0].example.question else WRITTEN
    pairs = [(task.example.question, task.example.answers[0]) for task in tasks]
    for asked in split_joint(layout, tokenizer, pairs):
        if asked is None:
            return None
        ids += asked.ask + asked.answer
        kinds += [REST] * len(asked.ask) + [kind] * len(asked.answer)
    return Tokens(ids, kinds)


@dataclass(frozen=True)
class Texts:
    """The batches of a mixture; picklable.

    max_tokens: longer texts are left out; texts are drawn until a batch is full.
    """

    mixture: MixtureRows
    tokenizer: Tokenizer
    batch_size: int
    max_tokens: int

    def group(self, number: int) -> list[Batch]:
        """The `GROUP` batches of one group."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core already
        wanted, drawn = GROUP * self.batch_size, 0
        texts: list[Tokens] = []
        while len(texts) < wanted:
            # groups own disjoint ranges of the mixture: at most every second text may be left out
            if drawn == 2 * wanted:
                raise ValueError(f"more than half of the texts exceed {self.max_tokens} tokens")
            text = tokenise(self.tokenizer, self.mixture[2 * wanted * number + drawn])
            drawn += 1
            if text is not None and len(text.ids) <= self.max_tokens:
                texts.append(text)
        short = int(SHORT * self.max_tokens)
        texts.sort(key=lambda text: len(text.ids) > short)  # stable: short ones first
        cut = [texts[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
        random.Random(number).shuffle(cut)
        sizes = (
            short if all(len(text.ids) <= short for text in rows) else self.max_tokens
            for rows in cut
        )
        return [pad(rows, size) for rows, size in zip(cut, sizes, strict=True)]

    def batches(self, start: int, stop: int, workers: int) -> Iterator[Batch]:
        """The batches of steps `start` to `stop`; workers: processes, 0 for none."""
        first, last = start // GROUP, -(-stop // GROUP)
        step = first * GROUP
        for group in ahead(self.group, first, last, workers):
            for batch in group:
                if start <= step < stop:
                    yield batch
                step += 1


def left_out(texts: Texts, sample: int) -> float:
    """Share of the mixture's first `sample` texts that are too long."""
    drawn = [tokenise(texts.tokenizer, texts.mixture[i]) for i in range(sample)]
    return sum(t is None or len(t.ids) > texts.max_tokens for t in drawn) / sample


def pad(texts: Sequence[Tokens], size: int | None = None) -> Batch:
    """{ids [B, T+1] int32, kinds [B, T+1] int8, lengths [B] int32}.

    size: T+1; None: the longest text's, T rounded up to a multiple of `MULTIPLE`.
    """
    if size is None:
        longest = max(len(text.ids) for text in texts)
        size = -(-(longest - 1) // MULTIPLE) * MULTIPLE + 1
    batch: Batch = {
        "ids": np.zeros((len(texts), size), np.int32),
        "kinds": np.zeros((len(texts), size), np.int8),
        "lengths": np.asarray([len(text.ids) for text in texts], np.int32),
    }
    for row, text in enumerate(texts):
        batch["ids"][row, : len(text.ids)] = text.ids
        batch["kinds"][row, : len(text.ids)] = text.kinds
    return batch
