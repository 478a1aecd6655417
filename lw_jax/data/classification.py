"""Text classification as reading: the answer is the label, in words that the receiver knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.overlap import normalised
from lw_jax.data.source import FileSource, ListRows, Reason, Reject, load, row_id, short_hash
from lw_jax.errors import UserError
from lw_jax.utils.bounds import Name, Text, Words


@dataclass(frozen=True)
class Config(FileSource):
    """Texts, each with one of a few labels (SST-2, AG News, TREC, or a file of that form).

    Args:
        train, eval: local file or files (.jsonl, .json, .csv, .tsv, .parquet) or hub name; eval
            null: `eval_share` of train's texts is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of texts, sampled by the seed; null for all.
        id_field: id of a row, given back in predictions.jsonl; null: `id`, where a row has one.
        max_malformed: share of malformed rows that is tolerated; null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        labels: the words that the receiver answers with, one for each class.
        values: what the label field holds for each of them, in that order; empty: 0, 1, ..., or
            the word itself.
        text_field: the text that crosses the wire.
        label_field: its class.
        question: asked of every text; empty: none.
        decontaminate: training texts that are also evaluation texts are left out, even if case or
            punctuation differ.
    """

    labels: Words = ()
    values: Words = ()
    text_field: Name = "text"
    label_field: Name = "label"
    question: Text = "Label?"
    decontaminate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        words = [_word(label) for label in self.labels]
        if len(words) < 2 or len(set(words)) < len(words) or not all(words):
            raise UserError(
                f"labels: expected two or more different words; got {list(self.labels)}"
            )
        values = {_word(value) for value in self.values}
        if self.values and (len(values), len(self.values)) != (len(words), len(words)):
            raise UserError(
                f"values: expected a different one for each of the {len(words)} labels; "
                f"got {list(self.values)}"
            )

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows:
        """One row for each text; texts that occur twice in a file share a context."""
        meant = meaning(self)

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            text = records.text(record, self.text_field)
            label = label_of(record, self, meant)
            key = normalised(text) or text
            name = f"classification-{short_hash(key)}"
            number, own = short_hash(f"{text}\n{label}"), row_id(self, record)
            yield (
                key,
                Example(f"{name}/{number}", name, text, self.question, (label,), row_id=own),
            )

        leave = None
        if split != "eval" and self.decontaminate and self.has_eval:
            held_out = load(replace(self, eval_rows=None), "eval", parse)
            names = {group[0].context_id for group in held_out.groups}
            leave = lambda example: HELD_OUT if example.context_id in names else None  # noqa: E731
        return load(self, split, parse, seed, level, leave)

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers that a row can have."""
        return tuple(map(_word, self.labels))


HELD_OUT = Reason(
    "decontaminated",
    "left out, which are evaluation texts as well; data.classification.decontaminate=false "
    "keeps them",
)


def _word(label: str) -> str:
    """A label, or what stands for it in a file, with white space collapsed."""
    return " ".join(label.split())


def meaning(cfg: Config) -> dict[str, str]:
    """The label word for every value that the label field may hold, as text."""
    words = cfg.choices
    if cfg.values:
        return dict(zip(map(_word, cfg.values), words, strict=True))
    return {str(i): word for i, word in enumerate(words)} | {word: word for word in words}


def label_of(record: Mapping[str, Any], cfg: Config, meant: Mapping[str, str]) -> str:
    """The label word of a record.

    Raises:
        BadRowError: the record has no label, or an unknown one.
    """
    value = record.get(cfg.label_field)
    found = None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a column of whole numbers becomes if one is missing
    if isinstance(value, str | int) and not isinstance(value, bool):
        found = meant.get(_word(str(value)))
    if found is None:
        raise records.BadRowError(
            f"{cfg.label_field}: expected one of {', '.join(meant)}; got {records.found(value)}"
        )
    return found
