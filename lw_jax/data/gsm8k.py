"""GSM8K word problems (Cobbe et al. 2021): read back, continued, solved or answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from lw_jax.data import records
from lw_jax.data.example import Example
from lw_jax.data.files import Names
from lw_jax.data.halves import halves
from lw_jax.data.overlap import RunIndex, normalised
from lw_jax.data.rewritten import Augment, RewrittenRows
from lw_jax.data.source import FileSource, ListRows, Reason, Reject, load, row_id, short_hash
from lw_jax.errors import UserError
from lw_jax.utils.bounds import Name

_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Config(FileSource):
    """GSM8K word problems.

    Args:
        train, eval: local file or files (.jsonl, .json, .csv, .parquet; fields `question` and
            `answer`) or hub name; eval null: `eval_share` of train is held out.
        subset, train_split, eval_split: of a hub data set.
        eval_share, validation_share: shares of train held out (the first only without eval rows).
        train_rows, eval_rows: maximum number of rows, sampled by the seed; null for all.
        id_field: id of a row, given back in predictions.jsonl; null: `id`, where a row has one.
        max_malformed: share of malformed rows that is tolerated; null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
        task: what follows the problem: `readback` (the problem itself), `solve` (the worked
            solution) or `final` (its number); or `continue`: the problem's first half crosses,
            its second is written.
        decontaminate: training rows that share a run of this many words with an evaluation row are
            left out; 0: none is.
        augment: other names and numbers, only in the training split; for `readback`.
    """

    train: Names = "openai/gsm8k"
    eval: Names | None = "openai/gsm8k"
    subset: Name | None = "main"
    task: Literal["readback", "solve", "final", "continue"] = "readback"
    decontaminate: Annotated[int, Ge(0), Le(1000)] = 13
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment.rewritten and self.task != "readback":
            raise UserError(
                f"augment.rewritten: only for task readback (a rewritten problem has another "
                f"solution); the task is {self.task}"
            )

    @property
    def ends_in_number(self) -> bool:
        """Only a worked solution does."""
        return self.task == "solve"

    @property
    def stop(self) -> tuple[str, ...]:
        """A final number is short; a text that is read back, its second half and a worked solution
        go over lines."""
        return super().stop if self.task == "final" else ()

    @property
    def origin(self) -> str:
        """Where its texts come from, and under what licence."""
        return (
            f"GSM8K (Cobbe et al. 2021, OpenAI), MIT licence, if the file is of it: {self.named}."
        )

    def rows(self, split: str, seed: int = 0, level: int | None = None) -> ListRows | RewrittenRows:
        """One row for each problem; problems that occur twice in a file share a context."""

        def parse(
            where: str, record: Mapping[str, Any], reject: Reject
        ) -> Iterator[tuple[str, Example]]:
            problem = records.text(record, "question")
            key = normalised(problem)
            context, answer = problem, problem
            if self.task == "continue":
                context, answer = halves(problem)
            elif self.task != "readback":
                answer = solution(record, self.task == "final")
            name = f"gsm8k-{short_hash(key)}"
            own = row_id(self, record)
            yield (
                key,
                Example(f"{name}/{Path(where).name}", name, context, "", (answer,), row_id=own),
            )

        def whole(example: Example) -> str:
            rest = example.answers if self.task == "continue" else ()
            return " ".join((example.context, *rest))

        index = None
        if split != "eval" and self.decontaminate:
            held_out = load(replace(self, eval_rows=None), "eval", parse)
            index = RunIndex((whole(group[0]) for group in held_out.groups), self.decontaminate)

        near = Reason(
            "decontaminated",
            f"left out, which share {self.decontaminate} words in a row with an evaluation row; "
            "data.gsm8k.decontaminate=0 keeps them",
        )

        def leave(example: Example) -> Reason | None:
            return near if index is not None and index.shared(whole(example)) else None

        read = load(self, split, parse, seed, level, leave)
        if split != "train" or not self.augment.rewritten:
            return read
        groups = [group[:1] for group in read.groups]
        return RewrittenRows(groups, self.augment, seed, index, read.malformed, read.account)


def solution(record: Mapping[str, Any], final: bool = False) -> str:
    """The worked solution without calculator marks, or its final number without thousands' commas.

    Args:
        record: the record.
        final: whether only the number is wanted.

    Raises:
        BadRowError: there is no solution, or it does not end in "#### number".
    """
    records.text(record, "answer")
    lines = _CALCULATOR.sub("", record["answer"]).strip().splitlines()
    solved = "\n".join(" ".join(line.split()) for line in lines)
    steps, mark, number = solved.rpartition("####")
    if not mark or not re.search(r"\d", number):
        raise records.BadRowError('answer: expected a solution that ends in "#### number"')
    return number.strip().replace(",", "") if final else f"{steps.strip()}\n#### {number.strip()}"
