"""Finds what training must not contain: held-out words, evaluation rows, near copies of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from lw_jax.data.example import Example
from lw_jax.data.overlap import RunIndex, normalised
from lw_jax.data.stream import Groups
from lw_jax.data.words import open_split
from lw_jax.errors import short

_WORD = re.compile(r"[A-Za-z]+")
_ANY_WORD = re.compile(r"[^\W_]+")
LOOKED_AT = 100_000
"""Contexts of each side that are compared, spread evenly over all; 50,000 of 120 words take
between two and three seconds."""
LEAST = 32
"""Letters and digits of a context that is looked for inside others: shorter ones stand anywhere."""
SAME = 20
"""Letters and digits of a text from which on one that differs in punctuation alone is the same: in
shorter ones it may be what is asked (`2 + 2`)."""
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
"""Soft hyphens, joiners, spaces without width and byte order marks."""
BEGINNING = 4
"""Words with which a text begins, looked for before the whole of it is."""
_UP_TO = range(1, BEGINNING + 1)
Item = TypeVar("Item")
COUNTED = 2_000
"""Training contexts whose words are counted to know the rare ones."""
GENERATED = 256
"""Rows that are generated and compared; their words are divided among the splits by a hash."""


@dataclass(frozen=True)
class Overlap:
    """Evaluation rows that are training rows as well, stand inside one, or hold a whole one.

    Attributes:
        contexts: evaluation contexts that a training row has, white space, case and, but in short
            texts, punctuation aside.
        of: evaluation contexts that were looked at.
        asked: evaluation questions that a training row asks of the same context.
        inside: other evaluation contexts of which all words stand in a row in a training context.
        holding: others that have all words of a training context in a row.
        example: the first such context.
        where: id of its training row, the file's own if it has one.
    """

    contexts: int
    of: int
    asked: int
    inside: int
    holding: int
    example: str
    where: str

    @property
    def how(self) -> str:
        """What the evaluation rows are to those of training."""
        if self.contexts:
            return "are"
        return "are parts of" if self.inside else "hold the whole text of"

    def __str__(self) -> str:
        text, row = repr(short(self.example, 60)), f"row {self.where}"
        inside = f", {self.inside} more as a part of a longer one" if self.inside else ""
        whole = f", {self.holding} more with a whole one inside" if self.holding else ""
        if self.contexts:
            same = f"{self.contexts} of {self.of} contexts, {self.asked} with the same question"
            return f"{same}{inside}{whole}; {text} is {row}"
        if self.inside:
            return f"{self.inside} of {self.of} contexts{whole}; {text} is a part of {row}"
        return f"{self.holding} of {self.of} contexts; {text} holds {row}"


def overlap(training: Groups[Any], evaluation: Groups[Any]) -> Overlap | None:
    """Evaluation rows that are training rows as well, stand inside one, or hold a whole one; None:
    there are none.

    Of rows that are generated when they are needed the first are compared; rows that are rewritten
    from a file are compared as the file has them.

    Args:
        training: training rows.
        evaluation: evaluation rows.
    """
    asked: dict[int, set[int]] = {}
    texts: dict[int, str] = {}
    for group in _some(evaluation):
        context = _key(group[0].context)
        texts.setdefault(context, group[0].context)
        asked.setdefault(context, set()).update(_key(e.question) for e in group)
    found: dict[int, str] = {}
    inside: dict[int, str] = {}
    again: set[tuple[int, int]] = set()
    parts = _Parts(texts, (g[0].context for g in islice(_some(training), COUNTED)))
    begun = _Begun[str]()
    for group in _some(training):
        name = group[0].row_id or group[0].id
        context, words = _key_and_words(group[0].context)
        if context in asked:
            found.setdefault(context, name)
            again |= {(context, q) for e in group if (q := _key(e.question)) in asked[context]}
        begun.add(name, words)
        for other in parts.among(words):
            inside.setdefault(other, name)
    parts_only = {key: name for key, name in inside.items() if key not in found}
    others = (key for key in texts if key not in found and key not in inside)
    holding = ((key, next(begun.inside(_words(texts[key])), None)) for key in others)
    wholes = {key: name for key, name in holding if name is not None}
    every = found or parts_only or wholes
    if not every:
        return None
    first, where = next(iter(every.items()))
    return Overlap(
        len(found), len(asked), len(again), len(parts_only), len(wholes), texts[first], where
    )


def touching(training: Sequence[Any], evaluation: Iterable[Any]) -> set[int]:
    """Places of training contexts that are evaluation contexts, hold one, or are a part of one.

    Args:
        training: training rows held in memory.
        evaluation: evaluation rows.
    """
    texts = {_key(group[0].context): group[0].context for group in evaluation}
    found: set[int] = set()
    wholes = _Parts(texts, (group[0].context for group in islice(training, COUNTED)))
    begun = _Begun[int]()
    for place, group in enumerate(training):
        key, words = _key_and_words(group[0].context)
        if key in texts or any(True for _ in wholes.among(words)):
            found.add(place)
        begun.add(place, words)
    for text in texts.values():
        found.update(begun.inside(_words(text)))
    return found


class _Begun(Generic[Item]):
    """Finds, inside a text, texts that were added before, word for word, by their first words."""

    def __init__(self) -> None:
        self.by_head: dict[str, list[tuple[Item, str]]] = {}

    def add(self, item: Item, words: Sequence[str]) -> None:
        """Adds a text, unless it is so short that it stands anywhere.

        Args:
            item: what is found.
            words: the text's.
        """
        if sum(map(len, words)) >= LEAST:
            whole = item, _whole(words)
            self.by_head.setdefault(" ".join(words[:BEGINNING]), []).append(whole)

    def inside(self, words: Sequence[str]) -> Iterator[Item]:
        """The items of the texts that stand in a text of these words."""
        heads = {" ".join(words[i : i + n]) for i in range(len(words)) for n in _UP_TO}
        whole = _whole(words)
        for head in self.by_head.keys() & heads:
            yield from (item for item, part in self.by_head[head] if part in whole)


class _Parts:
    """Finds texts inside others, word for word: punctuation, white space and case aside.

    Of each text only the rarest word is looked for, and the whole text where that stands.

    Args:
        texts: the texts by key.
        others: some texts in which words are counted, beside `texts`.
    """

    def __init__(self, texts: Mapping[int, str], others: Iterable[str]) -> None:
        words = {key: _words(text) for key, text in texts.items()}
        count = Counter(word for found in words.values() for word in set(found))
        count.update(word for text in others for word in set(_words(text)))
        self.by_word: dict[str, list[tuple[int, str]]] = {}
        for key, found in words.items():
            if sum(map(len, found)) >= LEAST:
                rare = min(found, key=lambda word: (count[word], -len(word)))
                self.by_word.setdefault(rare, []).append((key, _whole(found)))
        self.rare = frozenset(self.by_word)

    def among(self, words: Sequence[str]) -> Iterator[int]:
        """Keys of the texts that stand in a text of these words."""
        rare = self.rare.intersection(words)
        whole = _whole(words) if rare else ""
        for word in rare:
            yield from (key for key, part in self.by_word[word] if part in whole)


def _whole(words: Iterable[str]) -> str:
    """Words as they are looked for in others: each between spaces."""
    return f" {' '.join(words)} "


def _words(text: str) -> list[str]:
    return _ANY_WORD.findall(_plain(text))


def _plain(text: str) -> str:
    """A text without case, forms of characters, and characters that are not seen."""
    return unicodedata.normalize("NFKC", text).translate(_UNSEEN).casefold()


def _key(text: str) -> int:
    """A text's hash in this process, white space, case and forms of characters aside; of one with
    some words, punctuation as well."""
    return _key_and_words(text)[0]


def _key_and_words(text: str) -> tuple[int, list[str]]:
    plain = _plain(text)
    words = _ANY_WORD.findall(plain)
    return hash(" ".join(words if sum(map(len, words)) >= SAME else plain.split())), words


def _some(rows: Groups[Any]) -> Iterator[Any]:
    """Contexts held in memory, at most `LOOKED_AT` of them; the first of those generated."""
    held = getattr(rows, "groups", None)
    if held is None:
        return (rows[i] for i in range(min(len(rows), GENERATED)))
    return islice(held, 0, None, max(1, -(-len(held) // LOOKED_AT)))


class Leak(NamedTuple):
    """Something of the evaluation in the training rows.

    Attributes:
        kind: `word` (an open word of another split), `row` (a context of the evaluation), `run` (a
            run of words of one).
        where: id of the training row.
        what: the word, context or run.
    """

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: held-out {self.kind} {self.what!r}"


def find(
    training: Groups[Any], evaluation: Groups[Any] | None, limit: int | None = None, run: int = 13
) -> list[Leak]:
    """Leaks into the training rows.

    Open words are checked by their hash, which covers every possible evaluation. Contexts and runs
    are compared with `evaluation`.

    Args:
        training: training rows, of a data set or of the pretraining mixture.
        evaluation: evaluation rows; None: only words are checked.
        limit: number of contexts of each to check, from the first on; None: all.
        run: words in a run.
    """
    found = [leak for example in examples(training, limit) for leak in held_out_words(example)]
    if evaluation is None:
        return found
    contexts = {normalised(example.context) for example in examples(evaluation, limit)}
    index = RunIndex(contexts, run)
    for example in examples(training, limit):
        if normalised(example.context) in contexts:
            found.append(Leak("row", example.id, example.context))
        elif (shared := index.shared(example.context)) is not None:
            found.append(Leak("run", example.id, shared))
    return found


def held_out_words(example: Example) -> Iterator[Leak]:
    """The open words in an example's texts that training may not contain."""
    text = " ".join((example.context, example.question, *example.answers))
    for word in dict.fromkeys(_WORD.findall(text)):
        if open_split(word) not in (None, "train"):
            yield Leak("word", example.id, word)


def examples(rows: Groups[Any], limit: int | None = None) -> Iterator[Example]:
    """The examples of rows, even if the rows hold them together with an anchor."""
    for index in islice(range(len(rows)), limit):
        for item in rows[index]:
            yield item if isinstance(item, Example) else item.example
