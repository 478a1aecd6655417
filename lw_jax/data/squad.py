"""SQuAD v1.1 and v2 (Rajpurkar et al. 2016, 2018): the nested JSON, and the hub's flat rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.source import FileSource, ListRows, Reject, load, short_hash
from lw_jax.utils.bounds import Location, Name, Word


@dataclass(frozen=True)
class Config(FileSource):
    """SQuAD v1.1 or v2 passages with their questions.

    Args:
        train, eval: local file (the nested .json, or .jsonl and .parquet of flat rows) or hub
            name; eval null: `eval_share` of train's articles is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of passages, sampled by the seed; null for all.
        unanswerable: the answer to v2's questions without one; null leaves them out.
    """

    train: Location = "rajpurkar/squad"
    eval: Location | None = "rajpurkar/squad"
    eval_split: Name = "validation"
    unanswerable: Word | None = None

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows:
        """One row for each passage, with all its questions; a split never divides an article."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            for place, title, context, question in _questions(where, record, reject):
                try:
                    yield from _example(title, context, question, self.unanswerable)
                except records.BadRowError as error:
                    reject(place, str(error))

        def keep(example: Example) -> bool:
            return bool(example.answers)

        return load(self, split, parse, seed, level, keep)


def _questions(
    where: str, record: Mapping[str, Any], reject: Reject
) -> Iterator[tuple[str, str, Any, Any]]:
    """(where, title, context, question record) of an article, or of one flat row."""
    title = str(record.get("title") or "")
    if "paragraphs" not in record:
        yield where, title, record.get("context"), record
        return
    for number, paragraph in enumerate(_list(record, "paragraphs")):
        place = f"{where}.paragraphs[{number}]"
        try:
            if not isinstance(paragraph, Mapping):
                raise records.BadRowError(f"expected an object, got {repr(paragraph)[:40]}")
            for index, question in enumerate(_list(paragraph, "qas")):
                yield f"{place}.qas[{index}]", title, paragraph.get("context"), question
        except records.BadRowError as error:
            reject(place, str(error))


def _example(
    title: str, passage: Any, question: Any, unanswerable: str | None
) -> Iterator[tuple[str, Example]]:
    if not isinstance(question, Mapping):
        raise records.BadRowError(f"expected an object, got {repr(question)[:40]}")
    context = records.text({"context": passage}, "context")
    asked = records.text(question, "question")
    texts = _answers(question)
    if not texts and unanswerable is not None:
        texts = (unanswerable,)
    name = short_hash(context)
    number = question.get("id") or short_hash(asked)
    yield (
        title or context,
        Example(f"squad-{name}/{number}", f"squad-{name}", context, asked, texts),
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
    if not texts and not isinstance(answers, Mapping) and not question.get("is_impossible"):
        raise records.BadRowError("answers: empty, and is_impossible is not true")
    return tuple(dict.fromkeys(records.text({"answers": text}, "answers") for text in texts))


def _list(record: Mapping[str, Any], field: str) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list):
        raise records.BadRowError(f"{field}: expected a list, got {repr(value)[:40]}")
    return value
