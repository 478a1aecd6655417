"""Any file or hub data set of rows with a context, a question and an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.source import FileSource, ListRows, Reject, load, row_id, short_hash
from lw_jax.utils.bounds import Name

MOST_LEVEL = 2**31 - 1
_DIGIT = re.compile(r"\d")
_WHOLE = re.compile(r"\s*[-+]?[0-9]{1,12}\s*")


@dataclass(frozen=True)
class Config(FileSource):
    """Rows with a context, a question and an answer, under field names of your own.

    Args:
        train, eval: local file (.jsonl, .json, .csv, .tsv, .parquet; text also as .gz), several of
            them, a pattern (`data/*.jsonl`), a directory, or hub name; eval null: `eval_share` of
            train's contexts is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of contexts, sampled by the seed; null for all.
        id_field: id of a row, given back as `row_id` in predictions.jsonl; null: `id` or `_id`,
            where a row has one.
        max_malformed: share of malformed rows that is tolerated (they are named and left out);
            null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        context_field: the text that crosses the wire.
        question_field: null: there is no question.
        answer_field: text, or a list of texts that all count as right; null: the context is read
            back.
        level_field: a whole number, the curriculum level; null: all 0.
        article_field: name of what several contexts come from, which no split divides; a row in
            which it is null has none. null: nothing is known of articles.
        ends_in_number: whether answers are worked solutions that end in `#### NUMBER`, as GSM8K's;
            then the number is scored by itself.
    """

    context_field: Name = "context"
    question_field: Name | None = "question"
    answer_field: Name | None = "answer"
    level_field: Name | None = None
    article_field: Name | None = None
    ends_in_number: bool = False

    @property
    def stop(self) -> tuple[str, ...]:
        """A context that is read back may go over lines."""
        return () if self.answer_field is None else super().stop

    @property
    def has_articles(self) -> bool:
        """Where a field names them."""
        return self.article_field is not None

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows:
        """One row for each context, with all its questions."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            context = records.text(record, self.context_field)
            question = (
                records.text(record, self.question_field, numbers=True)
                if self.question_field
                else ""
            )
            answers = (
                (context,) if self.answer_field is None else _answers(record, self.answer_field)
            )
            name = f"jsonl-{short_hash(context)}"
            if self.ends_in_number and not all(map(_DIGIT.search, answers)):
                raise records.BadRowError(
                    f"{self.answer_field or self.context_field}: expected a solution that ends in "
                    f"a number (or set {self.key}.ends_in_number to false), got "
                    f"{records.shown(answers[0])}"
                )
            number = short_hash(f"{question}\n{answers[0]}")
            article = _article(record, self)
            yield (
                article or context,
                Example(
                    f"{name}/{number}",
                    name,
                    context,
                    question,
                    answers,
                    level_of(record, self.level_field),
                    row_id(self, record),
                    article,
                ),
            )

        return load(self, split, parse, seed, level)


def _answers(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list):
        return (records.text(record, field, numbers=True),)
    if not value:
        raise records.BadRowError(f"{field}: expected text or a list of texts, got []")
    return tuple(dict.fromkeys(records.text({field: text}, field, numbers=True) for text in value))


def _article(record: Mapping[str, Any], cfg: Config) -> str:
    field = cfg.article_field
    if field is None or (field in record and record[field] in (None, "")):
        return ""
    return records.text(record, field, numbers=True)


def level_of(record: Mapping[str, Any], field: str | None) -> int:
    """The curriculum level in a field of a row; 0 without one.

    Raises:
        BadRowError: it is no whole number.
    """
    if field is None:
        return 0
    value = record.get(field)
    if isinstance(value, records.Cell) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a column of whole numbers becomes if one is missing
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST_LEVEL:
        raise records.BadRowError(f"{field}: expected a whole number, got {records.shown(value)}")
    return value
