"""Texts of a mixture in token ids, in batches of a few static lengths, prepared by processes.

A batch depends on (seed, step) alone. Steps are drawn in groups: a group's texts are sorted by
length and cut into its batches, so that little is padded; their order within the group is drawn.
No jax here: worker processes import this.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lw_jax.config.layout import LayoutConfig
from lw_jax.data.prefetch import ahead
from lw_jax.data.pretraining import MixtureRows, TextTask
from lw_jax.receiver.layout import Speaker, head_ids, message_text, split_joint

GROUP = 8
"""Batches whose texts are sorted together."""
MULTIPLE = 64
"""Static lengths are multiples of this many tokens."""

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tokens:
    """One text: its ids, and whether each is an answer's (its EOS included)."""

    ids: list[int]
    answer: list[bool]


def tokenise(who: Speaker, tasks: Sequence[TextTask]) -> Tokens | None:
    """The receiver's sequence of a context and one or more tasks on it, each with its answer.

    The first task comes exactly as a receiver is asked; the others follow its EOS. None where an
    answer does not begin at a token boundary.
    """
    layout = LayoutConfig(anchor=tasks[0].anchor)
    ids = head_ids(layout, who) + who.encode(message_text(layout, tasks[0].example.context))
    answer = [False] * len(ids)
    pairs = [(task.example.question, task.example.answers[0]) for task in tasks]
    for asked in split_joint(layout, who, pairs):
        if asked is None:
            return None
        ids += asked.ask + asked.answer
        answer += [False] * len(asked.ask) + [True] * len(asked.answer)
    return Tokens(ids, answer)


@dataclass(frozen=True)
class Texts:
    """The batches of a mixture; picklable.

    max_tokens: longer texts are left out; texts are drawn until a batch is full.
    """

    mixture: MixtureRows
    who: Speaker
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
            text = tokenise(self.who, self.mixture[2 * wanted * number + drawn])
            drawn += 1
            if text is not None and len(text.ids) <= self.max_tokens:
                texts.append(text)
        texts.sort(key=lambda text: len(text.ids))
        cut = [texts[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
        random.Random(number).shuffle(cut)
        return [pad(rows) for rows in cut]

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
    drawn = [tokenise(texts.who, texts.mixture[i]) for i in range(sample)]
    return sum(t is None or len(t.ids) > texts.max_tokens for t in drawn) / sample


def pad(texts: Sequence[Tokens]) -> Batch:
    """{ids [B, T+1] int32, answer [B, T+1] bool, lengths [B] int32}, T a multiple of `MULTIPLE`."""
    longest = max(len(text.ids) for text in texts)
    size = -(-(longest - 1) // MULTIPLE) * MULTIPLE + 1
    batch = {
        "ids": np.zeros((len(texts), size), np.int32),
        "answer": np.zeros((len(texts), size), bool),
        "lengths": np.asarray([len(text.ids) for text in texts], np.int32),
    }
    for row, text in enumerate(texts):
        batch["ids"][row, : len(text.ids)] = text.ids
        batch["answer"][row, : len(text.ids)] = text.answer
    return batch
