"""Generated texts to classify: the label is the topic of most sentences; the others distract.

A sentence shows its topic by what is done with a noun ("Ada Tovek feeds goats in Dakelu."), or only
by the noun ("Ada Tovek dreams of goats."). A hash divides nouns among the splits, as it does open
words (`words.py`): no noun and no name of the evaluation was ever seen with a label.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from annotated_types import Ge, Le

from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Split, check_split, rng_of
from lw_jax.data.words import ANIMALS, FIRST_NAMES, ITEMS, JOBS, PLACES, open_word
from lw_jax.errors import UserError
from lw_jax.utils.bounds import Probability, Rows

TOPICS: dict[str, tuple[str, ...]] = {
    "animals": ANIMALS,
    "jobs": JOBS,
    "things": ITEMS,
    "places": PLACES,
}
"""The labels, and their nouns."""

QUESTION = "What is this mostly about?"

STATEMENTS: dict[str, tuple[str, ...]] = {
    "animals": (
        "{who} feeds {noun} in {city}.",
        "{who} keeps {noun} behind the house.",
        "{who} looks after {noun} every day.",
        "In {city} {who} cleans up after {noun}.",
    ),
    "jobs": (
        "{who} works with the {noun} of {city}.",
        "{who} learns from {noun} how to earn a living.",
        "{who} has found work among {noun}.",
        "In {city} {who} pays {noun} by the hour.",
    ),
    "things": (
        "{who} bought {noun} in {city}.",
        "{who} paid too much for {noun}.",
        "{who} got {noun} for a few dollars.",
        "In {city} {who} found old {noun} on sale.",
    ),
    "places": (
        "{who} walks past the {noun} of {city}.",
        "{who} lives near the {noun}.",
        "{who} met a friend in one of the {noun}.",
        "In {city} {who} got lost between the {noun}.",
    ),
}
"""Sentences that show their topic by more than the noun."""

NEUTRAL = (
    "{who} dreams of {noun}.",
    "{who} likes to talk about {noun}.",
    "{who} read a book about {noun} in {city}.",
    "In {city} {who} saw pictures of {noun}.",
)
"""Sentences that show their topic only by the noun."""

_PLURALS = {"fireman": "firemen", "knife": "knives", "scarf": "scarves"}


@dataclass(frozen=True)
class Config(DataSet):
    """Generated texts, each mostly about animals, jobs, things or places.

    Args:
        sentences: sentences in a text.
        own: number of them about its topic; no other topic has as many.
        told: share of the sentences that show their topic by more than the noun.
        size: texts in the training split (each is generated when it is needed).
        eval_size: texts in the validation and in the evaluation split.
    """

    sentences: Annotated[int, Ge(1), Le(100)] = 5
    own: Annotated[int, Ge(1), Le(100)] = 3
    told: Probability = 0.8
    size: Rows = 1_000_000
    eval_size: Rows = 1000

    def __post_init__(self) -> None:
        check_sentences(self.sentences, self.own)

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers that a row can have."""
        return tuple(TOPICS)

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> TopicRows:
        """The rows of one split; other seeds give other texts, with the same split's words.

        Args:
            split: the split.
            seed: seed of the texts.
            level: number of sentences; None: the config's.
        """
        sentences = self.sentences if level is None else level
        check_sentences(sentences, self.own)
        size = self.size if split == "train" else self.eval_size
        return TopicRows(check_split(split), seed, sentences, self.own, size, self.told)


def check_sentences(sentences: int, own: int) -> None:
    """Raises UserError unless `own` sentences can be more than those of any other topic."""
    most = own + (len(TOPICS) - 1) * (own - 1)
    if not own <= sentences <= most:
        raise UserError(
            f"sentences: {own} of a text's own topic need {own} to {most} in all; got {sentences}"
        )


class TopicRows:
    """`rows[i]` depends only on (seed, split, sentences, own, told, i).

    Rows 4 k to 4 k + 3 have one of every topic.
    """

    malformed: Sequence[str] = ()

    def __init__(
        self, split: Split, seed: int, sentences: int, own: int, size: int, told: float
    ) -> None:
        self.split = split
        self.seed = seed
        self.sentences = sentences
        self.own = own
        self.size = size
        self.told = told

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> tuple[Example, ...]:
        if not 0 <= index < self.size:
            raise IndexError(f"topics row {index} of {self.size}")
        kind = f"topics-{self.split}-{self.seed}-{self.own}of{self.sentences}"
        block, place = divmod(index, len(TOPICS))
        label = rng_of(f"{kind}/{block}").sample(list(TOPICS), len(TOPICS))[place]
        name = f"{kind}-{index}"
        context = self._text(label, rng_of(name))
        return (Example(f"{name}/{label}", name, context, QUESTION, (label,), self.sentences),)

    def _text(self, label: str, rng: random.Random) -> str:
        others = [topic for topic in TOPICS if topic != label] * (self.own - 1)
        about = [label] * self.own + rng.sample(others, self.sentences - self.own)
        rng.shuffle(about)
        said: set[str] = set()
        return " ".join(self._sentence(topic, said, rng) for topic in about)

    def _sentence(self, topic: str, said: set[str], rng: random.Random) -> str:
        nouns = split_nouns(topic, self.split)
        fresh = [noun for noun in nouns if noun not in said] or list(nouns)
        noun = rng.choice(fresh)
        said.add(noun)
        who = f"{rng.choice(FIRST_NAMES)} {open_word('surname', self.split, rng)}"
        city = open_word("city", self.split, rng)
        statements = STATEMENTS[topic] if rng.random() < self.told else NEUTRAL
        return rng.choice(statements).format(who=who, city=city, noun=noun)


@cache
def split_nouns(topic: str, split: Split) -> tuple[str, ...]:
    """The nouns of a topic that a split's texts use, in the plural."""
    return tuple(plural(topic, noun) for noun in TOPICS[topic] if noun_split(noun) == split)


def noun_split(noun: str) -> Split:
    """The split that a noun belongs to, by its letters: 5/8 train, 1/8 validation, 2/8 eval."""
    bucket = hashlib.blake2b(noun.encode(), digest_size=1).digest()[0] & 7
    return "eval" if bucket < 2 else "validation" if bucket == 2 else "train"


def plural(topic: str, noun: str) -> str:
    """The plural of a noun of a topic, so that grammar shows no topic."""
    if topic == "animals":  # the list has plurals
        return noun
    if noun in _PLURALS:
        return _PLURALS[noun]
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|ch|sh)$", noun) else "s")
