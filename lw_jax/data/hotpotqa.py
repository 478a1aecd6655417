"""HotpotQA (Yang et al. 2018): its own JSON, and the hub's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.files import Names
from lw_jax.data.source import FileSource, ListRows, Reject, load, row_id, short_hash
from lw_jax.utils.bounds import Name

LEVELS = {"easy": 1, "medium": 2, "hard": 3}


@dataclass(frozen=True)
class Config(FileSource):
    """HotpotQA questions over several paragraphs.

    Args:
        train, eval: local file or files (.json, .jsonl, .parquet) or hub name; eval null:
            `eval_share` of train is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of questions, sampled by the seed; null for all.
        id_field: id of a question, given back in predictions.jsonl; null: `_id` or `id`.
        max_malformed: share of malformed rows that is tolerated; null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        paragraphs: the context: the two `supporting` paragraphs, or `all` (with distractors).
    """

    train: Names = "hotpotqa/hotpot_qa"
    eval: Names | None = "hotpotqa/hotpot_qa"
    subset: Name | None = "distractor"
    eval_split: Name = "validation"
    paragraphs: Literal["supporting", "all"] = "supporting"

    @property
    def origin(self) -> str:
        """Where its texts come from, and under what licence."""
        return (
            "HotpotQA (Yang et al. 2018; passages of Wikipedia), CC BY-SA 4.0, if the file is of "
            f"it: {self.named}."
        )

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows:
        """One row for each context; `level` is 1 easy, 2 medium, 3 hard, 0 unknown."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            question = records.text(record, "question", numbers=True)
            answer = records.text(record, "answer", numbers=True)
            paragraphs = _paragraphs(record.get("context"))
            if self.paragraphs == "supporting":
                titles = _titles(record.get("supporting_facts"))
                paragraphs = [(t, body) for t, body in paragraphs if t in titles]
            context = " ".join(f"{title}: {body}" for title, body in paragraphs)
            if not context:
                raise records.BadRowError("context: none of the supporting paragraphs is there")
            name = f"hotpotqa-{short_hash(context)}"
            own = row_id(self, record)
            number = own or short_hash(question)
            difficulty = LEVELS.get(str(record.get("level")), 0)
            yield (
                context,
                Example(f"{name}/{number}", name, context, question, (answer,), difficulty, own),
            )

        return load(self, split, parse, seed, level)


def _paragraphs(value: Any) -> list[tuple[str, str]]:
    """(title, text) pairs of [[title, [sentence, ...]], ...] or of the hub's two parallel lists."""
    if isinstance(value, Mapping):
        titles, bodies = value.get("title"), value.get("sentences")
        if isinstance(titles, list) and isinstance(bodies, list) and len(titles) == len(bodies):
            value = list(zip(titles, bodies, strict=True))
    if not isinstance(value, list):
        raise records.BadRowError(f"context: expected paragraphs, got {records.shown(value)}")
    made = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], list):
            raise records.BadRowError(
                f"context: expected [title, [sentences]], got {records.shown(pair)}"
            )
        if not all(isinstance(part, str) for part in (pair[0], *pair[1])):
            raise records.BadRowError(
                f"context: expected a title and sentences, got {records.shown(pair)}"
            )
        title, body = pair[0], " ".join(pair[1])
        made.append((title, records.sound(body, "context")))
        records.sound(title, "context")
    return made


def _titles(value: Any) -> set[str]:
    """Titles of [[title, sentence], ...] or {"title": [...], "sent_id": [...]}."""
    if isinstance(value, Mapping):
        titles = value.get("title")
        value = [[title] for title in titles] if isinstance(titles, list) else titles
    if not isinstance(value, list) or not all(isinstance(fact, list) and fact for fact in value):
        raise records.BadRowError(f"supporting_facts: expected facts, got {records.shown(value)}")
    return {str(fact[0]) for fact in value}
