"""Questions that prose asks of itself: a stretch of it with a gap, and what stood there.

Each time that a text is drawn its gaps are others, so that no question is seen twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.jsonl import level_of
from lw_jax.data.source import FileSource, ListRows, Reject, load, row_id, short_hash
from lw_jax.utils.bounds import Name, Share, Word

_WORD = re.compile(r"\d+(?:[,.]\d+)*|[^\W\d_][\w'’-]*")
BEFORE, AFTER = (3, 10), (0, 8)
"""Words of the text around a gap, the fewest and the most."""
MOST_WORDS = 4
"""Words in a gap."""


@dataclass(frozen=True)
class Config(FileSource):
    """Texts with gaps drawn anew whenever a text is drawn.

    Args:
        train, eval: local file (.jsonl, .json, .csv, .tsv, .parquet; text also as .gz), several of
            them, a pattern (`data/*.jsonl`), a directory, or hub name; eval null: `eval_share` of
            train's texts is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of texts, sampled by the seed; null for all.
        id_field: id of a row; null: `id` or `_id`, where a row has one.
        max_malformed: share of malformed rows that is tolerated; null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        context_field: the text.
        level_field: a whole number, the curriculum level; null: all 0.
        gap: what stands in the question where the answer was.
        other_words: share of the gaps at any word; the others are at names and numbers.
    """

    context_field: Name = "context"
    level_field: Name | None = None
    gap: Word = "____"
    other_words: Share = 0.12

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ClozeRows:
        """One row for each text that has a gap."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            context = records.text(record, self.context_field)
            name = f"cloze-{short_hash(context)}"
            if next(islice(_WORD.finditer(context), BEFORE[0], None), None) is None:
                raise records.BadRowError(f"{self.context_field}: too short for a gap")
            level = level_of(record, self.level_field)
            own = row_id(self, record)
            yield context, Example(f"{name}/0", name, context, "", ("",), level, own)

        found = load(self, split, parse, seed, level)
        groups = [tuple(map(self._asked, group)) for group in found.groups]
        return ClozeRows(groups, found.malformed, found.account, self)

    def _asked(self, row: Example) -> Example:
        """A row with its gap, which is that of its text."""
        made = question(row.context, self.gap, self.other_words, random.Random(row.context_id))
        assert made is not None  # it is long enough
        return replace(row, question=made[0], answers=(made[1],))


class ClozeRows(ListRows):
    """Texts with a gap; a stream draws others (`drawn`)."""

    def __init__(self, groups: Any, malformed: Any, account: Any, config: Config) -> None:
        super().__init__(groups, malformed, account)
        self.config = config

    def drawn(self, index: int, count: int, rng: random.Random) -> tuple[Example, ...]:
        """A text with `count` questions; different ones, where it has as many gaps."""
        one = self.groups[index][0]
        found: dict[tuple[str, str], None] = {}
        for _ in range(4 * count):
            made = question(one.context, self.config.gap, self.config.other_words, rng)
            if made is not None and len(found) < count:
                found[made] = None
        pairs = list(found) or [(one.question, one.answers[0])]
        picked = (pairs[i % len(pairs)] for i in range(count))
        return tuple(
            replace(one, id=f"{one.context_id}/{i}", question=asked, answers=(answer,))
            for i, (asked, answer) in enumerate(picked)
        )


def question(text: str, gap: str, other_words: float, rng: random.Random) -> tuple[str, str] | None:
    """A stretch of the text with a gap, and what stands there; None: the text is too short.

    Args:
        text: the text.
        gap: what stands where the answer was.
        other_words: probability of a gap at any word, and not at a name or number.
        rng: random draws.
    """
    words = list(_WORD.finditer(text))
    places = range(BEFORE[0], len(words))
    if not places:
        return None
    firsts = [text[word.start()] for word in words]
    marked = [i for i in places if firsts[i].isupper() or firsts[i].isdigit()]
    any_word = not marked or rng.random() < other_words
    first = rng.choice(places if any_word else marked)
    last = first + 1
    while (
        not any_word
        and last < min(len(words), first + MOST_WORDS)
        and text[words[last - 1].end() : words[last].start()] == " "
        and firsts[last].isupper()
    ):
        last += 1
    begin = words[max(0, first - rng.randint(*BEFORE))].start()
    after = min(len(words), last + rng.randint(*AFTER))
    stop = words[after - 1].end()
    asked = (
        f"{text[begin : words[first].start()].rstrip()} {gap}{text[words[last - 1].end() : stop]}"
    )
    return " ".join(asked.split()), text[words[first].start() : words[last - 1].end()]
