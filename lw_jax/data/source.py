"""From records to rows: splits, rows grouped by context, and an account of what was left out."""

from __future__ import annotations

import copy
import hashlib
import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, Self

from annotated_types import Ge, Le

from lw_jax.data import files, records
from lw_jax.data.base import DataSet
from lw_jax.data.example import Example, Remark, Split, check_split
from lw_jax.data.files import Names
from lw_jax.errors import UserError
from lw_jax.utils.bounds import FEW, Name, Rows, Share, Tokens

Reject = Callable[[str, str], None]
"""Called with the place of a malformed row, and what is wrong."""

Parse = Callable[[str, Mapping[str, Any], Reject], Iterable[tuple[str, Example]]]
"""(where, record, reject) -> examples, each with the key of what a split must keep together
(an article, a passage). It may raise `records.BadRowError` to reject the whole record. What it
gives depends on the record and the source's config alone.
"""

OWN_IDS = ("id", "_id")
"""Fields that hold a row's id where `id_field` names none."""
CAUSES = 3
"""Causes of malformed rows that are shown, the most frequent first."""


class Reason(NamedTuple):
    """Why rows are left out on purpose.

    Attributes:
        name: in metrics.json.
        said: what follows their number in a message, with the key that keeps them.
    """

    name: str
    said: str


@dataclass(frozen=True)
class FileSource(DataSet):
    """Where rows come from; the base of the configs of data sets that are read.

    Args:
        train: local file, several of them, a pattern (`data/*.jsonl`), a directory, or hub name of
            the training rows.
        eval: the same of the evaluation rows; null: `eval_share` of train is held out.
        subset: subset of a hub data set.
        train_split: split of a hub data set for training rows.
        eval_split: split of a hub data set for evaluation rows.
        eval_share: share of train held out for evaluation (only without evaluation rows).
        validation_share: share of train held out for validation.
        train_rows: maximum number of training rows, sampled by the seed; null for all.
        eval_rows: maximum number of evaluation rows, sampled by the seed; null for all.
        id_field: the file's own id of a row, which predictions.jsonl gives back as `row_id`; null:
            `id` or `_id`, where a row has one.
        max_malformed: share of malformed rows that is tolerated (they are named and left out);
            null: any but all.
        level_lengths: characters of the text up to which a row is of level 1, 2, ...; longer ones
            are of one more; empty: no levels by length.
    """

    train: Names = ""
    eval: Names | None = None
    subset: Name | None = None
    train_split: Name = "train"
    eval_split: Name = "test"
    eval_share: Annotated[float, Ge(0), Le(0.5)] = 0.1
    validation_share: Annotated[float, Ge(0), Le(0.5)] = 0.02
    train_rows: Rows | None = None
    eval_rows: Rows | None = None
    id_field: Name | None = None
    max_malformed: Share | None = None
    level_lengths: Annotated[tuple[Tokens, ...], FEW] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("train: missing; give a local file or a hub name")
        for name in ("train", "eval"):
            given = getattr(self, name)
            if given is not None and not all(files.several(given) or ("",)):
                raise UserError(f"{name}: an empty name; give a local file or a hub name")
        if list(self.level_lengths) != sorted(set(self.level_lengths)):
            raise UserError(
                f"level_lengths: {list(self.level_lengths)} do not rise; give each length once, "
                "the shortest first"
            )
        if self.level_lengths and getattr(self, "level_field", None) is not None:
            raise UserError("level_lengths: level_field names the levels already; set one of them")

    def levelled(self, row: Example) -> Example:
        """A row with the level that its text's length gives it, where lengths give one."""
        if not self.level_lengths:
            return row
        return replace(row, level=1 + bisect_left(self.level_lengths, len(row.context)))

    @property
    def has_eval(self) -> bool:
        """Whether evaluation rows have their own file or split."""
        if self.eval is None:
            return False
        same = files.resolved(self.eval) == files.resolved(self.train)
        local = any(files.is_file(name) for name in files.several(self.train))
        return not same or (not local and self.eval_split != self.train_split)

    @property
    def named(self) -> str:
        """The files, or hub names, as the config has them."""
        given = [n for one in (self.train, self.eval) if one for n in files.several(one)]
        return ", ".join(dict.fromkeys(given))

    @property
    def origin(self) -> str:
        """Where its texts come from, as far as that is known."""
        return f"{self.named}: its source and licence are not known to lw_jax."

    @property
    def key(self) -> str:
        """Where the config has it: `data.squad`."""
        return f"data.{type(self).__module__.rpartition('.')[2]}"


@dataclass(frozen=True)
class Account:
    """What became of the records of one split.

    Attributes:
        read: rows of the source, malformed ones included, whatever their split.
        malformed: place and cause of every row that was left out as malformed.
        left_out: number of rows that were left out on purpose, by the reason.
        twice: place of every row that another row of the split equals in context, question and
            answers, and the place of that row.
        contrary: place of every row that has the context and question of another row and other
            answers, and the place of that row.
        same_ids: ids that stand at rows which are not the same.
        absent: place of every row none of whose gold answers stands in its text, of a data set
            whose answers are parts of the text.
    """

    read: int = 0
    malformed: Sequence[tuple[str, str]] = ()
    left_out: Mapping[Reason, int] = field(default_factory=dict)
    twice: Sequence[tuple[str, str]] = ()
    same_ids: Sequence[str] = ()
    contrary: Sequence[tuple[str, str]] = ()
    absent: Sequence[str] = ()

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What is said of it at the start of a stage, and by the doctor."""
        found = []
        if self.malformed:
            found.append(Remark("warning", malformed_text(self.malformed, self.read)))
        found += [Remark("ok", f"{count} {why.said}") for why, count in self.left_out.items()]
        if self.twice:
            where, first = self.twice[0]
            found.append(
                Remark(
                    "warning",
                    f"{_rows(len(self.twice))} twice (same context, question and answers) and "
                    f"count twice: {where}, as {first}{_more(len(self.twice) - 1)}",
                )
            )
        if self.contrary:
            where, first = self.contrary[0]
            count = len(self.contrary)
            found.append(
                Remark(
                    "warning",
                    f"{count} {'row has' if count == 1 else 'rows have'} the context and question "
                    f"of another, and other answers, so one of them counts as wrong: {where}, as "
                    f"{first}{_more(count - 1)}",
                )
            )
        if self.absent:
            count = len(self.absent)
            found.append(
                Remark(
                    "warning",
                    f"{count} {'row has' if count == 1 else 'rows have'} no gold answer that "
                    "stands in the text, case and white space aside: "
                    f"{self.absent[0]}{_more(count - 1)}",
                )
            )
        if self.same_ids:
            found.append(
                Remark(
                    "warning",
                    "ids that stand at several rows, so that predictions cannot be joined by "
                    f"them: {len(self.same_ids)} ({self.same_ids[0][:40]!r}); id_field names "
                    "another field",
                )
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """For `data` of metrics.json."""
        return {
            "read": self.read,
            "left_out": {why.name: count for why, count in self.left_out.items()},
            "twice": len(self.twice),
        }


class ListRows:
    """Rows held in memory.

    Attributes:
        groups: the contexts.
        malformed: rows that were left out as malformed.
        account: what became of the records.
    """

    def __init__(
        self,
        groups: list[tuple[Example, ...]],
        malformed: list[str],
        account: Account = Account(),
    ) -> None:
        self.groups = groups
        self.malformed = malformed
        self.account = account

    def without(self, places: Collection[int], why: Reason) -> Self:
        """These rows but for some contexts.

        Args:
            places: indices of the contexts that are left out.
            why: the reason, for the account.
        """
        kept = copy.copy(self)
        kept.groups = [group for place, group in enumerate(self.groups) if place not in places]
        count = sum(len(self.groups[place]) for place in places)
        left_out = {**self.account.left_out, **({why: count} if count else {})}
        kept.account = replace(self.account, left_out=left_out)
        return kept

    @property
    def skipped(self) -> int:
        """Number of rows that were left out on purpose."""
        return sum(self.account.left_out.values())

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What is said of the rows that were left out."""
        return self.account.remarks

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
    leave: Callable[[Example], Reason | None] | None = None,
    extractive: Callable[[Example], bool] | None = None,
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
        leave: why an example is left out, or None; None: all are kept.
        extractive: whether an example's answers are parts of its text; None: nobody says so.

    Raises:
        UserError: what `records.read` raises, an unknown split, too many malformed rows, or nothing
            left.
    """
    wanted = check_split(split)
    has_eval = source.has_eval
    own = wanted == "eval" and has_eval
    name = source.eval if own and source.eval else source.train
    part = source.eval_split if own else source.train_split
    _check_apart(source)
    malformed: list[tuple[str, str]] = []
    groups: dict[str, list[Example]] = {}
    left_out: Counter[Reason] = Counter()
    seen: dict[tuple[str, str, tuple[str, ...]], str] = {}
    twice: list[tuple[str, str]] = []
    asked: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    contrary: list[tuple[str, str]] = []
    absent: list[str] = []
    ids: set[str] = set()
    same_ids: dict[str, None] = {}
    splits: Counter[Split] = Counter()
    levels: set[int] = set()
    read = 0
    file = _File(source, name, part, files.state(name), parse)
    for where, place, example in _entries(file):
        if not isinstance(example, Example):
            malformed.append((where, example))
            continue
        read += 1
        actual: Split = "eval" if own else _split_of(place, source, has_eval)
        splits[actual] += 1
        if actual != wanted:
            continue
        levels.add(example.level)
        if level is not None and example.level != level:
            continue
        if leave is not None and (why := leave(example)) is not None:
            left_out[why] += 1
            continue
        content = example.context_id, example.question, example.answers
        if content in seen:
            twice.append((where, seen[content]))
        else:
            if example.row_id in ids:
                same_ids[example.row_id] = None
            first, answers = asked.setdefault(content[:2], (where, example.answers))
            if not set(answers) & set(example.answers):
                contrary.append((where, first))
        seen.setdefault(content, where)
        if extractive is not None and extractive(example) and not _stands(example):
            absent.append(where)
        if example.row_id:
            ids.add(example.row_id)
        groups.setdefault(example.context_id, []).append(example)
    read += len(malformed)
    account = Account(read, malformed, dict(left_out), twice, list(same_ids), contrary, absent)
    names = ", ".join(files.several(name))
    if not groups:
        of = "" if level is None else f" of level {level}"
        first = f"; the first: {': '.join(malformed[0])}" if malformed else ""
        raise UserError(
            f"{names}: no row{of} in the split {wanted!r} ({len(malformed)} malformed{first})"
            + _advice(file, wanted, own, level, levels, splits, account)
        )
    most = source.max_malformed
    if most is not None and len(malformed) > most * read:
        raise UserError(
            f"{source.key}.max_malformed: a share of {most:g} is tolerated; {names}: "
            f"{malformed_text(malformed, read)}"
        )
    rows = [tuple(group) for group in groups.values()]
    size = source.train_rows if wanted == "train" else source.eval_rows
    if size is not None and size < len(rows):
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]
    return ListRows(rows, [f"{where}: {why}" for where, why in malformed], account)


def _stands(example: Example) -> bool:
    """Whether one of an example's gold answers stands in its text, case and white space aside."""
    if any(answer in example.context for answer in example.answers):
        return True
    text = _spaced(example.context)
    return any(_spaced(answer) in text for answer in example.answers)


def _spaced(text: str) -> str:
    return " ".join(text.casefold().split())


Entry = tuple[str, float, Example | str]
"""Where a row stands, the place of its key in [0, 1), which decides its split, and its example; of
a malformed one the cause."""


@dataclass(frozen=True)
class _File:
    """What the rows of a source are read from; equal ones give equal rows."""

    source: FileSource
    name: Names
    part: str
    state: files.State | None
    parse: Parse = field(compare=False)

    def entries(self) -> Iterator[Entry]:
        """All rows, whatever their split and level."""
        wrong: list[Entry] = []

        def reject(where: str, why: str) -> None:
            wrong.append((where, 0.0, why))

        for where, record in records.read(self.name, self.source.subset, self.part):
            try:
                if isinstance(record, records.BadRowError):
                    raise record
                if not isinstance(record, Mapping):
                    raise records.BadRowError(f"expected an object, got {records.shown(record)}")
                for key, row in self.parse(where, record, reject):
                    yield where, _place_of(key), self.source.levelled(row)
            except records.BadRowError as error:
                reject(where, str(error))
            yield from wrong
            wrong.clear()


def _entries(file: _File) -> Iterable[Entry]:
    return file.entries() if file.state is None else _held(file)


@lru_cache(maxsize=4)
def _held(file: _File) -> tuple[Entry, ...]:
    """The rows of small files as they are now: levels and splits of one file are read together."""
    return tuple(file.entries())


def malformed_text(malformed: Sequence[tuple[str, str]], read: int) -> str:
    """Malformed rows in one line: how many, their share, and the most frequent causes.

    Args:
        malformed: place and cause of each.
        read: number of rows, malformed ones included.
    """
    kinds: dict[str, list[str]] = {}
    for where, why in malformed:
        # what was found there does not make another cause
        kind = re.split(r",? got |; got | at (?:byte|column|character) ", why)[0]
        kinds.setdefault(kind, []).append(f"{where}: {why}")
    common = sorted(kinds.values(), key=lambda said: -len(said))
    parts = [f"{said[0]}{_more(len(said) - 1)}" for said in common[:CAUSES]]
    if len(common) > CAUSES:
        parts.append(f"{len(common) - CAUSES} other causes")
    share = len(malformed) / max(1, read)
    return f"{len(malformed)} malformed rows left out of {read} ({share:.2g}): {'; '.join(parts)}"


def row_id(source: FileSource, record: Mapping[str, Any]) -> str:
    """The file's own id of a row, or "".

    Raises:
        BadRowError: `id_field` names a field that holds none.
    """
    for name in OWN_IDS if source.id_field is None else (source.id_field,):
        value = record.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # what a column of whole numbers becomes if one is missing
        if isinstance(value, str) and value.strip():
            return records.sound(value, name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if source.id_field is not None:
            raise records.BadRowError(
                f"{name}: expected an id, text or a whole number, got {records.found(value)}"
            )
    return ""


def short_hash(text: str) -> str:
    """A text's name in ids."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=6).hexdigest()


def _place_of(key: str) -> float:
    """A hash of a row's key, in [0, 1)."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _split_of(place: float, source: FileSource, has_eval: bool) -> Split:
    held_out = 0.0 if has_eval else source.eval_share
    if place < held_out:
        return "eval"
    return "validation" if place < held_out + source.validation_share else "train"


def _check_apart(source: FileSource) -> None:
    """Raises UserError if some files are training's and evaluation's, and others are not."""
    if source.eval is None or not source.has_eval:
        return
    local = [name for name in files.several(source.eval) if files.is_file(name)]
    both = sorted(files.resolved(tuple(local)) & files.resolved(source.train))
    if both:
        raise UserError(
            f"{source.key}.train: {both[0]} is a file of eval as well; name others, or set eval "
            "to null to hold out a share of all"
        )


def _advice(
    file: _File,
    wanted: Split,
    own: bool,
    level: int | None,
    levels: set[int],
    splits: Counter[Split],
    account: Account,
) -> str:
    """What would give the split rows."""
    source = file.source
    if account.left_out:
        return "; " + "; ".join(f"{n} {why.said}" for why, n in account.left_out.items())
    if level is not None and levels:
        return f"; there are levels {', '.join(map(str, sorted(levels)))}"
    if account.malformed and not splits:
        found = records.read(file.name, source.subset, file.part)
        fields = next(
            (", ".join(map(str, one)) for _, one in found if isinstance(one, Mapping)), ""
        )
        return f"; the rows have the fields {fields[:200]}" if fields else ""
    if own or not splits:
        return ""
    shares = "" if source.has_eval else f"eval_share {source.eval_share:g} and "
    why = (
        f"; a hash of each context (or article) decides its split, and with {shares}"
        f"validation_share {source.validation_share:g} none of {splits.total()} rows fell there: "
    )
    if wanted == "validation":
        return f"{why}raise {source.key}.validation_share, or set eval_every: 0 (no evaluation)"
    if wanted == "eval":
        return f"{why}raise {source.key}.eval_share, or name rows of their own in {source.key}.eval"
    return f"{why}lower the shares, or give more rows"


def _rows(count: int) -> str:
    return "1 row stands" if count == 1 else f"{count} rows stand"


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""
