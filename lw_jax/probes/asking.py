"""Asking a receiver for passages and for what the data asks about them, and counting what it says.

All that differs between the lines of a probe is what the receiver is given about each passage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from lw_jax.data.example import Example
from lw_jax.evaluate.config import DecodeConfig
from lw_jax.evaluate.metrics.squad import exact_match, f1
from lw_jax.evaluate.predict import options_of
from lw_jax.models.frozen import FrozenDecoder
from lw_jax.models.generate import DecodeOptions
from lw_jax.probes.base import progress
from lw_jax.probes.descent import Passage, up
from lw_jax.receiver import answer
from lw_jax.receiver.answer import Message
from lw_jax.receiver.pack import segment
from lw_jax.text.layout import Asked, Prompt
from lw_jax.text.stop import stop_of
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.utils.compile import AheadOfTime

QUESTIONS = 64
"""Questions that are asked at once."""


class Asking(NamedTuple):
    """A question of the data.

    Attributes:
        of: number of its passage.
        row: question and right answers.
        asked: both in the receiver's tokens.
    """

    of: int
    row: Example
    asked: Asked


class Reader(NamedTuple):
    """Something that the receiver is given about each passage.

    Attributes:
        prompt: what stands around it.
        message: from numbers of passages to what they are given.
    """

    prompt: Prompt
    message: Callable[[Sequence[int]], Message]


class Questions(NamedTuple):
    """Questions that are asked alike.

    Attributes:
        of: the passage of each.
        asked: each in the receiver's tokens.
        options: of decoding.
        size: how many at once.
    """

    of: list[int]
    asked: list[Asked]
    options: DecodeOptions
    size: int


class Said(NamedTuple):
    """What the receiver says to one question.

    Attributes:
        nll: nats of the right answer.
        ids: that it writes by itself.
        length: of these.
        stopped: whether a token ended it that holds a stop.
        columns: of the receiver that the message takes.
    """

    nll: float
    ids: np.ndarray
    length: int
    stopped: bool
    columns: int


@dataclass(frozen=True)
class Counted:
    """What was counted of passages, [n] each: sums, and what they are sums over.

    Attributes:
        sums: by name.
        parts: by name: tokens, questions or answer tokens of the passage.
        columns: receiver columns of the message.
        wrote: what was written when the passage was asked for.
    """

    sums: dict[str, np.ndarray]
    parts: dict[str, np.ndarray]
    columns: np.ndarray
    wrote: list[str]

    def mean(self, name: str) -> float:
        """Over all parts of all passages."""
        return float(self.sums[name].sum() / self.parts[name].sum())


@dataclass(frozen=True)
class Asker:
    """Asks one receiver.

    Attributes:
        console: prints for people.
        model: the receiver.
        tokenizer: its own.
        decode: how it writes answers.
        passages: that it is asked for.
        askings: the questions of the data.
        batch_size: passages at once.
    """

    console: Console
    model: FrozenDecoder
    tokenizer: Tokenizer
    decode: DecodeConfig
    passages: Sequence[Passage]
    askings: Sequence[Asking]
    batch_size: int

    def count(self, line: str, reader: Reader, whole: bool = True) -> Counted:
        """What is counted of the answers to the questions, and of the passages.

        Args:
            line: said beside the progress.
            reader: what the receiver is given.
            whole: whether the passages are asked for.
        """
        empty = Counted({}, {}, np.zeros(len(self.passages)), [])
        held = self._read_back(line, reader) if whole else empty
        asked = self._asked(line, reader) if self.askings else empty
        return Counted(
            held.sums | asked.sums,
            held.parts | asked.parts,
            np.maximum(held.columns, asked.columns),
            held.wrote,
        )

    def prepare(self, plan: AheadOfTime, reader: Reader, whole: bool = True) -> None:
        """Adds the programs of `count` to those that are compiled side by side."""
        kinds = [*([self.wholes] if whole else []), *([self.questions] if self.askings else [])]
        for kind in kinds:
            at, _ = next(iter(in_turn(len(kind.of), kind.size)))
            scored, written = self._arguments(reader, kind, at)
            plan.add(answer.score, *scored)
            plan.add(answer.write, *written)

    def _read_back(self, line: str, reader: Reader) -> Counted:
        """Asks for the passages."""
        n = len(self.passages)
        nats, same, columns = np.zeros(n), np.zeros(n), np.zeros(n)
        wrote = [""] * n
        for i, one in self._said(f"{line}, passages", reader, self.wholes):
            own = one.ids[: one.length].tolist()
            nats[i], columns[i] = one.nll, one.columns
            same[i] = _matched(self.passages[i].whole.answer[:-1], own)
            wrote[i] = self.tokenizer.backend.decode(own)
        tokens = np.array([len(one.whole.answer) for one in self.passages], float)
        return Counted(
            {"nats_a_token": nats, "token_match": same},
            {"nats_a_token": tokens, "token_match": tokens - 1},
            columns,
            wrote,
        )

    def _asked(self, line: str, reader: Reader) -> Counted:
        """Asks the questions."""
        n = len(self.passages)
        sums = {name: np.zeros(n) for name in ("f1", "em", "answer_nats")}
        parts = {name: np.zeros(n) for name in sums}
        columns = np.zeros(n)
        stop = stop_of(self.tokenizer, self.decode.stop or ())
        for j, one in self._said(f"{line}, questions", reader, self.questions):
            i, right = self.askings[j].of, self.askings[j].row.answers
            text = stop.text(self.tokenizer, one.ids.tolist(), one.length, one.stopped)
            columns[i] = one.columns
            sums["f1"][i] += f1(text, right)
            sums["em"][i] += exact_match(text, right)
            sums["answer_nats"][i] += one.nll
            parts["f1"][i] += 1
            parts["em"][i] += 1
            parts["answer_nats"][i] += len(self.askings[j].asked.answer)
        return Counted(sums, parts, columns, [])

    @cached_property
    def wholes(self) -> Questions:
        """The passages are asked for."""
        some = [one.whole for one in self.passages]
        ends = tuple(sorted({*self.model.arch.eos_ids, self.tokenizer.eos_id}))
        options = DecodeOptions(max_new=up(len(one.answer) for one in some), eos_ids=ends)
        return Questions(list(range(len(some))), some, options, min(self.batch_size, len(some)))

    @cached_property
    def questions(self) -> Questions:
        """The questions are asked."""
        decode, some = self.decode, self.askings
        stop = stop_of(self.tokenizer, decode.stop or ())
        options = options_of(decode, self.model.arch, self.tokenizer, stop)
        return Questions(
            [one.of for one in some],
            [one.asked for one in some],
            options,
            min(QUESTIONS, len(some)),
        )

    def _arguments(
        self, reader: Reader, kind: Questions, at: Sequence[int]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Arguments of the scorer and of the writer."""
        message = reader.message([kind.of[j] for j in at])
        ask = segment([kind.asked[j].ask for j in at], up(len(one.ask) for one in kind.asked))
        long = up(len(one.answer) for one in kind.asked)
        gold = segment([kind.asked[j].answer for j in at], long, "answer")
        common = self.model, reader.prompt, message, ask
        return (*common, gold), (*common, jax.random.key(0), kind.options)

    def _said(self, what: str, reader: Reader, kind: Questions) -> Iterator[tuple[int, Said]]:
        """What the receiver says, question by question."""
        with progress(self.console, what, len(kind.of)) as step:
            for at, real in in_turn(len(kind.of), kind.size):
                to_score, to_write = self._arguments(reader, kind, at)
                nll = answer.score(*to_score).nll
                wrote = answer.write(*to_write)
                columns = answer.occupied(to_score[2])
                got = jax.device_get((nll, wrote.ids, wrote.lengths, wrote.stopped, columns))
                for j, nats, ids, n, stopped, m in zip(at[:real], *got, strict=False):
                    yield j, Said(float(nats), ids, int(n), bool(stopped), int(m))
                step(real)


def _matched(gold: Sequence[int], said: Sequence[int]) -> int:
    """Tokens of `gold` that stand in `said`, in the same order."""
    blocks = SequenceMatcher(None, gold, said, autojunk=False).get_matching_blocks()
    return sum(one.size for one in blocks)


def in_turn(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Numbers in batches of one size, the last one filled up, and how many of each count.

    Args:
        count: numbers, from 0 on.
        size: of a batch.
    """
    for begin in range(0, count, size):
        own = list(range(begin, min(begin + size, count)))
        yield [*own, *own[-1:] * (size - len(own))], len(own)
