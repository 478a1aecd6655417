"""Texts of a mixture in token ids, in batches of a few static lengths, prepared by processes.

A batch depends only on (seed, step). Steps are drawn in groups: a group's texts are sorted into
short and long ones and cut into its batches, so that two shapes are compiled and little is padded,
and every batch still mixes the tasks. No jax here: worker processes import this.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lw_jax.data.prefetch import ahead
from lw_jax.errors import UserError
from lw_jax.pretrain.mixture import MixtureRows, TextTask
from lw_jax.text.layout import head_ids, message_text, split_joint
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

GROUP = 8
"""Number of batches whose texts are sorted together."""
SHORT = 0.5625
"""Texts up to this share of the longest allowed are short ones."""
MULTIPLE = 64
"""Static lengths of texts that are only scored are multiples of this many tokens."""
REST, ANSWER, WRITTEN = 0, 1, 2
"""Kinds of token: of a question's answer, of a text written again (EOS included), or neither."""

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tokens:
    """One text.

    Attributes:
        ids: its tokens.
        kinds: the kind of each token (`REST`, `ANSWER`, `WRITTEN`).
    """

    ids: list[int]
    kinds: list[int]


def tokenise(tokenizer: Tokenizer, tasks: Sequence[TextTask]) -> Tokens | None:
    """The receiver's sequence of a context and one or more tasks on it, each with its answer.

    The first task comes exactly as a receiver is asked; the others follow its EOS.

    Args:
        tokenizer: the model's tokenizer.
        tasks: the tasks.

    Returns:
        The tokens; None if an answer does not begin at a token boundary.
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

    Attributes:
        mixture: the texts.
        tokenizer: the model's tokenizer.
        batch_size: texts in a batch; texts are drawn until it is full.
        max_tokens: longer texts are left out.
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
            # groups use disjoint ranges of the mixture: at most every second text may be left out
            if drawn == 2 * wanted:
                raise UserError(
                    f"max_tokens: more than half of the texts have more than {self.max_tokens} "
                    "tokens; raise it"
                )
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
        """The batches of steps `start` to `stop`.

        Args:
            start: the first step.
            stop: one beyond the last step.
            workers: number of processes; 0: none.
        """
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

    Args:
        texts: the texts.
        size: T+1; None: the longest text's, with T rounded up to a multiple of `MULTIPLE`.
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
