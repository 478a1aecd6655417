"""From records to rows: splits, rows grouped by context, and a list of malformed rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen

from lw_jax.data import records
from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Split, check_split
from lw_jax.errors import UserError
from lw_jax.utils.bounds import Location, Name, Rows

Reject = Callable[[str, str], None]
"""Called with the place of a malformed row, and what is wrong."""

Parse = Callable[[str, Mapping[str, Any], Reject], Iterable[tuple[str, Example]]]
"""(where, record, reject) -> examples, each with the key of what a split must keep together
(an article, a passage). It may raise `records.BadRowError` to reject the whole record.
"""


@dataclass(frozen=True)
class FileSource(DataSet):
    """Where rows come from; the base of the configs of data sets that are read.

    Args:
        train: local file or hub name of the training rows.
        eval: local file or hub name of the evaluation rows; null: `eval_share` of train is held
            out.
        subset: subset of a hub data set.
        train_split: split of a hub data set for training rows.
        eval_split: split of a hub data set for evaluation rows.
        eval_share: share of train held out for evaluation (only without evaluation rows).
        validation_share: share of train held out for validation.
        train_rows: maximum number of training rows, sampled by the seed; null for all.
        eval_rows: maximum number of evaluation rows, sampled by the seed; null for all.
    """

    train: Annotated[str, MaxLen(4096)] = ""
    eval: Location | None = None
    subset: Name | None = None
    train_split: Name = "train"
    eval_split: Name = "test"
    eval_share: Annotated[float, Ge(0), Le(0.5)] = 0.1
    validation_share: Annotated[float, Ge(0), Le(0.5)] = 0.02
    train_rows: Rows | None = None
    eval_rows: Rows | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("train: missing; give a local file or a hub name")

    @property
    def has_eval(self) -> bool:
        """Whether evaluation rows have their own file or split."""
        if self.eval is None:
            return False
        same = self.eval == self.train
        return not same or (not records.is_file(self.train) and self.eval_split != self.train_split)


class ListRows:
    """Rows held in memory.

    Attributes:
        malformed: rows that were left out as malformed.
        skipped: number of rows that were left out on purpose.
    """

    def __init__(
        self, groups: list[tuple[Example, ...]], malformed: list[str], skipped: int = 0
    ) -> None:
        self.groups = groups
        self.malformed = malformed
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int, /) -> tuple[Example, ...]:
        return self.groups[index]


def load(
    source: FileSource,
    split: str,
    parse: Parse,
    seed: int = 0,
    level: int | None = None,
    keep: Callable[[Example], bool] | None = None,
) -> ListRows:
    """The rows of one split.

    Without evaluation rows of their own, `eval_share` of the training source is held out;
    `validation_share` always is. A hash of a row's key decides its split, never the seed; the seed
    only picks the sample if `train_rows` or `eval_rows` limits it.

    Args:
        source: where rows come from.
        split: the split.
        parse: reads a record.
        seed: seed of the sample.
        level: only rows of this level; None: all.
        keep: whether to keep an example; None: all are kept.

    Raises:
        UserError: what `records.read` raises, an unknown split, or nothing left.
    """
    wanted = check_split(split)
    own = wanted == "eval" and source.has_eval
    name = source.eval if own and source.eval else source.train
    part = source.eval_split if own else source.train_split
    malformed: list[str] = []
    groups: dict[str, list[Example]] = {}
    skipped = 0

    def reject(where: str, why: str) -> None:
        malformed.append(f"{where}: {why}")

    for where, record in records.read(name, source.subset, part):
        try:
            if isinstance(record, records.BadRowError):
                raise record
            if not isinstance(record, Mapping):
                raise records.BadRowError(f"expected an object, got {repr(record)[:40]}")
            for key, example in parse(where, record, reject):
                if not own and _split_of(key, source) != wanted:
                    continue
                if level is not None and example.level != level:
                    continue
                if keep is not None and not keep(example):
                    skipped += 1
                    continue
                groups.setdefault(example.context_id, []).append(example)
        except records.BadRowError as error:
            reject(where, str(error))
    if not groups:
        of = "" if level is None else f" of level {level}"
        first = f"; the first: {malformed[0]}" if malformed else ""
        raise UserError(
            f"{name}: no row{of} in the split {wanted!r} ({len(malformed)} malformed{first})"
        )
    rows = [tuple(group) for group in groups.values()]
    size = source.train_rows if wanted == "train" else source.eval_rows
    if size is not None and size < len(rows):
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]
    return ListRows(rows, malformed, skipped)


def short_hash(text: str) -> str:
    """A text's name in ids."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _split_of(key: str, source: FileSource) -> Split:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    held_out = 0.0 if source.has_eval else source.eval_share
    if place < held_out:
        return "eval"
    return "validation" if place < held_out + source.validation_share else "train"
