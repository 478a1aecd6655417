"""Generated facts: a few sentences about invented people, two facts each, and questions on them.

Six sentences are about 280 characters, in which the generator chooses among about 2 ** 230 contexts
(29 bytes; zlib makes about 190 of them): to answer all questions, almost all of its choices must be
kept. Answers are numbers, words of closed lists, or open words (`words.py`) that
no training row contains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Split, check_split, rng_of
from lw_jax.data.fact_kinds import KINDS, NAME, AnswerType, Ask, Kind
from lw_jax.data.halves import halves
from lw_jax.data.words import CLOSED, Role, open_word
from lw_jax.utils.bounds import FEW, Checked, Probability, Questions, Rows

MAX_LEVEL = 48  # two facts a person: 24 people, each with an animal, a job, an item of their own

Values = dict[str, str]


@dataclass(frozen=True)
class Augment(Checked):
    """Training contexts and questions that force a bridge to bind values to people.

    Args:
        shared: probability that the people of a context have the same kinds of facts, so that no
            question can be answered by its kind without its person.
        reverse: also ask for the person, as `reverse` of the data does in every split.
    """

    shared: Probability = 0.0
    reverse: bool = False


@dataclass(frozen=True)
class Config(DataSet):
    """Generated facts about invented people.

    Args:
        levels: numbers of sentences in a context; each context takes one of them at random.
        size: contexts in the training split (each is generated when it is needed).
        eval_size: contexts in the validation and in the evaluation split.
        questions: maximum number of questions on each context (null: all that can be asked).
        task: `answer` questions, or `readback` of the context itself (no question), or
            `continue`: the first half crosses, the second is written.
        reverse: also ask for the person ("Who works as a diver?"), which takes two look-ups.
        augment: additions to the training split.
    """

    levels: Annotated[tuple[Annotated[int, Ge(1), Le(MAX_LEVEL)], ...], MinLen(1), FEW] = (6,)
    size: Rows = 100_000_000
    eval_size: Rows = 1000
    questions: Questions | None = None
    task: Literal["answer", "readback", "continue"] = "answer"
    reverse: bool = False
    augment: Augment = Augment()

    @property
    def stop(self) -> tuple[str, ...]:
        """Only answers to questions are short."""
        return super().stop if self.task == "answer" else ()

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> FactsRows:
        """The rows of one split; other seeds give other contexts, with the same split's words.

        Args:
            split: the split.
            seed: seed of the contexts.
            level: number of sentences; None: the config's levels.
        """
        size = self.size if split == "train" else self.eval_size
        levels = self.levels if level is None else replace(self, levels=(level,)).levels
        named = check_split(split)
        more = self.augment if named == "train" else Augment()
        reverse = self.reverse or more.reverse
        return FactsRows(named, seed, levels, size, self.questions, self.task, reverse, more.shared)


class FactsRows:
    """`rows[i]` depends only on (seed, split, levels, i) and is generated when it is needed."""

    malformed: Sequence[str] = ()

    def __init__(
        self,
        split: Split,
        seed: int,
        level: int | Sequence[int],
        size: int,
        questions: int | None = None,
        task: str = "answer",
        reverse: bool = False,
        shared: float = 0.0,
    ) -> None:
        self.split = split
        self.seed = seed
        self.levels = (level,) if isinstance(level, int) else tuple(level)
        self.size = size
        self.questions = questions
        self.task = task
        self.reverse = reverse
        self.shared = shared

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> tuple[Example, ...]:
        if not 0 <= index < self.size:
            raise IndexError(f"facts row {index} of {self.size}")
        levels = "-".join(map(str, self.levels))
        name = f"facts-{self.split}-{self.seed}-{levels}-{index}"
        rng = rng_of(name)
        level = self.levels[int(rng.random() * len(self.levels))]
        facts = draw_facts(level, self.split, rng, self.shared)
        context = " ".join([_pick(kind.statements, rng).format_map(v) for kind, v in facts])
        if self.task == "readback":
            return (Example(f"{name}/readback", name, context, "", (context,), level),)
        if self.task == "continue":
            first, second = halves(context)
            return (Example(f"{name}/continue", name, first, "", (second,), level),)
        made: list[Example] = []
        for kind, ask, values in _askable(facts, self.questions, rng, self.reverse):
            question = _pick(ask.questions, rng).format_map(_asker(values, ask, rng))
            answers: tuple[str, ...] = (values[ask.slot],)
            if ask.slot == "who":
                answers = (values["surname"], values["who"])
            number = f"{name}/{ask.answer}/{kind}.{ask.slot}/{len(made)}"
            made.append(Example(number, name, context, question, answers, level))
        return tuple(made)


def answer_type(example: Example) -> AnswerType:
    """Whether a facts question asks for a number, a word of a closed list, or an open word."""
    return example.id.split("/")[1]  # type: ignore[return-value]


def draw_facts(
    level: int, split: Split, rng: random.Random, shared: float = 0.0
) -> list[tuple[Kind, Values]]:
    """Facts in random order: two for each person, and from level 2 on about at least two people.

    Args:
        level: number of facts.
        split: the split, which decides the open words.
        rng: random draws.
        shared: probability that the people have the same kinds of facts, so that no question can be
            answered by its kind alone.
    """
    people = max(min(level, 2), (level + 1) // 2)
    used: set[str] = set()
    facts = []
    same = rng.sample(KINDS, 2) if shared and rng.random() < shared else None
    for person in range(people):
        surname = _new_open("surname", split, rng, used)
        first = _pick(CLOSED["first"], rng)
        count = level // people + (person < level % people)
        for kind in (same or rng.sample(KINDS, count))[:count]:
            values = {"who": f"{first} {surname}", "first": first, "surname": surname}
            for slot, low, high in kind.numbers:
                values[slot] = str(low + int(rng.random() * (high - low + 1)))
            for slot in kind.closed:
                word = _pick(CLOSED[slot], rng)
                while slot in kind.unique and word in used:
                    word = _pick(CLOSED[slot], rng)
                used.add(word)
                values[slot] = word
            for slot, role in kind.open:
                values[slot] = _new_open(role, split, rng, used)
            facts.append((kind, values))
    rng.shuffle(facts)
    return facts


def _askable(
    facts: list[tuple[Kind, Values]], limit: int | None, rng: random.Random, reverse: bool
) -> Iterator[tuple[str, Ask, Values]]:
    """Every question that the facts answer, in random order.

    Args:
        facts: the facts.
        limit: maximum number of questions; it cuts the same order short, so it only saves time.
        rng: random draws.
        reverse: whether people are also asked for, by a fact, and by the surname for the first
            name.
    """
    asks = [
        (kind.name, ask, values)
        for kind, values in facts
        for ask in kind.asks
        if reverse or ask.slot != "who"
    ]
    if reverse:
        people = {values["surname"]: values for _, values in facts}
        asks += [("name", NAME, values) for values in people.values()]
    for taken in range(len(asks) if limit is None else min(limit, len(asks))):
        other = taken + int(rng.random() * (len(asks) - taken))
        asks[taken], asks[other] = asks[other], asks[taken]
        yield asks[taken]


def _asker(values: Values, ask: Ask, rng: random.Random) -> Values:
    """The values as a question may name them: the person by full name or only by surname."""
    if ask is NAME or rng.random() < 0.5:
        return values | {"who": values["surname"]}
    return values


def _new_open(role: Role, split: Split, rng: random.Random, used: set[str]) -> str:
    word = open_word(role, split, rng)
    while word in used:
        word = open_word(role, split, rng)
    used.add(word)
    return word


def _pick(options: tuple[str, ...], rng: random.Random) -> str:
    return options[int(rng.random() * len(options))]
