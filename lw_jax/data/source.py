"""From records to rows: which go to which split, grouped by context, the malformed ones named."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lw_jax.data import records
from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Split, check_split
from lw_jax.errors import UserError
from lw_jax.utils.checks import at_least, between

Reject = Callable[[str, str], None]
"""Takes where a malformed row stands, and what is wrong."""

Parse = Callable[[str, Mapping[str, Any], Reject], Iterable[tuple[str, Example]]]
"""(where, record, reject) -> examples, each with the key of what may not be torn apart by a split
(an article, a passage). May raise `records.BadRowError` to reject the whole record."""


@dataclass(frozen=True)
class FileSource(DataSet):
    """Where rows come from; the base of the configs of data sets that are read.

    Args: see the data sets' own configs.
    """

    train: str = ""
    eval: str | None = None
    subset: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    eval_share: float = 0.1
    validation_share: float = 0.02
    train_rows: int | None = None
    eval_rows: int | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("train: missing; give a local file or a hub name")
        between(self, 0, 0.5, "eval_share", "validation_share")
        at_least(self, 1, "train_rows", "eval_rows")

    @property
    def has_eval(self) -> bool:
        """Whether evaluation rows have a file or split of their own."""
        if self.eval is None:
            return False
        same = self.eval == self.train
        return not same or (not records.is_file(self.train) and self.eval_split != self.train_split)


class ListRows:
    """Rows held in memory. skipped: how many rows were left out on purpose."""

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
    """The rows of one split, of one level only if one is given, without those not to `keep`.

    Without evaluation rows of their own, `eval_share` of the training source is held out;
    `validation_share` always is. Which rows is decided by a hash of their key, never by the seed,
    which only picks the sample where `train_rows` or `eval_rows` limits it.

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
