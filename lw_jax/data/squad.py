"""SQuAD v1.1 and v2 (Rajpurkar et al. 2016, 2018): the nested JSON, and the hub's flat rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lw_jax.data import records
from lw_jax.data.augment import proper_names
from lw_jax.data.example import Example, picked
from lw_jax.data.files import Names
from lw_jax.data.source import FileSource, ListRows, Reason, Reject, load, row_id, short_hash
from lw_jax.data.swap import swapped
from lw_jax.utils.bounds import Name, Share, Word

UNANSWERABLE = Reason(
    "unanswerable", "unanswerable left out; data.squad.unanswerable=TEXT keeps them"
)


@dataclass(frozen=True)
class Config(FileSource):
    """SQuAD v1.1 or v2 passages with their questions.

    Args:
        train, eval: local file or files (the nested .json, or .jsonl, .csv, .parquet of flat
            rows) or hub name; eval null: `eval_share` of train's articles is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of passages, sampled by the seed; null for all.
        id_field: id of a question, given back in predictions.jsonl; null: `id`.
        max_malformed: share of malformed rows that is tolerated; null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        unanswerable: the answer to v2's questions without one; null leaves them out.
        swap: share of the passages, as training draws them, whose names and numbers are replaced,
            by the same ones in passage, questions and answers; drawn anew each time.
    """

    train: Names = "rajpurkar/squad"
    eval: Names | None = "rajpurkar/squad"
    eval_split: Name = "validation"
    unanswerable: Word | None = None
    swap: Share = 0.0

    @property
    def origin(self) -> str:
        """Where its texts come from, and under what licence."""
        return (
            "SQuAD (Rajpurkar et al. 2016; passages of Wikipedia), CC BY-SA 4.0, if the file is of "
            f"it: {self.named}."
        )

    @property
    def has_articles(self) -> bool:
        """The titles."""
        return True

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows:
        """One row for each passage, with all its questions; a split never divides an article."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            for place, title, context, question in _questions(where, record, reject):
                try:
                    yield from _example(self, title, context, question)
                except records.BadRowError as error:
                    reject(place, str(error))

        def leave(example: Example) -> Reason | None:
            return None if example.answers else UNANSWERABLE

        def extractive(example: Example) -> bool:
            return example.answers != (self.unanswerable,)

        as_read = replace(self, swap=0.0)  # the same rows: they are swapped when they are drawn
        found = load(as_read, split, parse, seed, level, leave, extractive)
        if split != "train" or not self.swap:
            return found
        return SwappedRows(found.groups, found.malformed, found.account, self.swap)


class SwappedRows(ListRows):
    """Passages of which a stream swaps the names and numbers of some (`drawn`)."""

    def __init__(self, groups: Any, malformed: Any, account: Any, share: float) -> None:
        super().__init__(groups, malformed, account)
        self.share = share
        self.pool = proper_names(group[0].context for group in groups)
        self.names = frozenset(self.pool)

    def drawn(self, index: int, count: int, rng: random.Random) -> tuple[Example, ...]:
        """A passage with `count` of its questions, perhaps with other names and numbers."""
        group = picked(self.groups[index], count, rng)
        if self.pool and rng.random() < self.share:
            return swapped(group, self.names, self.pool, rng)
        return group


def _questions(
    where: str, record: Mapping[str, Any], reject: Reject
) -> Iterator[tuple[str, str, Any, Any]]:
    """(where, title, context, question record) of an article, or of one flat row."""
    title = records.text(record, "title") if record.get("title") else ""
    if "paragraphs" not in record:
        yield where, title, record.get("context"), record
        return
    for number, paragraph in enumerate(_list(record, "paragraphs")):
        place = f"{where}.paragraphs[{number}]"
        try:
            if not isinstance(paragraph, Mapping):
                raise records.BadRowError(f"expected an object, got {records.shown(paragraph)}")
            for index, question in enumerate(_list(paragraph, "qas")):
                yield f"{place}.qas[{index}]", title, paragraph.get("context"), question
        except records.BadRowError as error:
            reject(place, str(error))


def _example(cfg: Config, title: str, passage: Any, question: Any) -> Iterator[tuple[str, Example]]:
    if not isinstance(question, Mapping):
        raise records.BadRowError(f"expected an object, got {records.shown(question)}")
    context = records.text({"context": passage}, "context")
    asked = records.text(question, "question", numbers=True)
    texts = _answers(question)
    if not texts and cfg.unanswerable is not None:
        texts = (cfg.unanswerable,)
    name, own = short_hash(context), row_id(cfg, question)
    number = own or short_hash(asked)
    yield (
        title or context,
        Example(
            f"squad-{name}/{number}",
            f"squad-{name}",
            context,
            asked,
            texts,
            row_id=own,
            article=title,
        ),
    )


def _answers(question: Mapping[str, Any]) -> tuple[str, ...]:
    """The different answer texts, in order; () if v2 says that there is none."""
    answers = question.get("answers")
    if isinstance(answers, Mapping):  # the hub's rows: {"text": [...], "answer_start": [...]}
        texts = _list(answers, "text")
    else:
        texts = [
            answer.get("text") if isinstance(answer, Mapping) else answer
            for answer in _list(question, "answers")
        ]
    impossible = question.get("is_impossible")
    if not texts and not isinstance(answers, Mapping) and impossible is not True:
        raise records.BadRowError("answers: empty, and is_impossible is not true")
    if texts and impossible is True:
        raise records.BadRowError("answers: there are some, and is_impossible is true")
    return tuple(dict.fromkeys(records.text({"answers": text}, "answers", True) for text in texts))


def _list(record: Mapping[str, Any], field: str) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list):
        raise records.BadRowError(f"{field}: expected a list, got {records.shown(value)}")
    return value
