"""From rows of text to the arrays of a batch, on the host; runs in worker processes (no jax).

A batch is a flat-named tree of numpy arrays. B contexts, Q questions each, N = B*Q; question n
belongs to context n // Q.

    source/ids [B,Ts] int32, source/lengths [B], source/skip [B]: the sender's tokens, or bytes
        (the first `skip` are BOS and primer, which are no content; an encoder's last is [SEP]);
        with several views source/<view>/ids and so on
    <receiver>/context/ids [B,Tc], .../lengths [B]      the text that the latent replaces
    <receiver>/ask/ids [N,Tq], .../lengths [N]          question and anchor (BOS first or last
        where the layout has it there)
    <receiver>/answer/ids [N,A], .../lengths [N]        what the receiver writes, and EOS
    <receiver>/answer/start [N] int32                   its first token that is no space
    valid [N] bool                                      False: the row was too long, and is dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lw_jax.data.example import Example, Group
from lw_jax.errors import UserError
from lw_jax.text.align import overlaps
from lw_jax.text.budget import KEPT, Cut, Spans, columns_at, needs_nats, of_tokens
from lw_jax.text.layout import (
    asked_pair,
    first_word,
    located_messages,
    located_sources,
    message_ids,
    message_text,
    source_head_ids,
    source_ids,
    source_text,
    split_joint,
)
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
MULTIPLE = 8
"""Static lengths are rounded up to a multiple of this many tokens."""


Sources = Tokenizer | Mapping[str, Tokenizer] | None
"""The tokenizer of the source, or one for each view by its key in a batch
(`BridgeConfig.batch_key`); None: no source is needed.
"""


def by_key(sources: Sources) -> dict[str, Tokenizer]:
    """The sources' tokenizers by their keys in a batch."""
    if sources is None:
        return {}
    return {"source": sources} if isinstance(sources, Tokenizer) else dict(sources)


@dataclass(frozen=True)
class Lengths:
    """Static lengths of a batch.

    Attributes:
        sizes: tokens of `source`, and of `<receiver>/context`, `/ask` and `/answer`.
        contexts: number of contexts that were measured.
        long: number of them that are longer than `limit_of` allows.
        shorter: smaller sizes of the same parts, ascending, of which a batch has the first that
            hold its rows, else `sizes` (`lw_jax.text.buckets`).
    """

    sizes: dict[str, int] = field(default_factory=dict)
    contexts: int = 0
    long: int = 0
    shorter: tuple[Mapping[str, int], ...] = ()

    def __getitem__(self, key: str) -> int:
        return self.sizes[key]

    @property
    def buckets(self) -> tuple[Mapping[str, int], ...]:
        """All sizes that a batch can have, ascending."""
        return *self.shorter, self.sizes

    def holding(self, longest: Mapping[str, int]) -> Mapping[str, int]:
        """The first sizes that hold these lengths; the last where none do."""
        for sizes in self.shorter:
            if all(length <= sizes[key] for key, length in longest.items()):
                return sizes
        return self.sizes


@dataclass(frozen=True)
class Collate:
    """Rows of text to a `Batch`; picklable.

    Attributes:
        layout: the receiver's sequence.
        sources: tokenizers of the source.
        receivers: the receivers' tokenizers by name.
        lengths: static lengths of the arrays.
        nats: by message in words what `layout.text_budget` asks for of every text: the nats of the
            sender's tokens.
    """

    layout: LayoutConfig
    sources: Sources
    receivers: dict[str, Tokenizer]
    lengths: Lengths
    nats: Mapping[str, Spans] = field(default_factory=dict)

    def __call__(self, groups: Sequence[Group]) -> Batch:
        """A batch of contexts, each with the same number of questions."""
        questions = len(groups[0])
        flat = [example for group in groups for example in group]
        sources = by_key(self.sources)
        batch: Batch = {}
        ok = np.ones(len(flat), bool)
        parts = self.rows(groups, flat, questions)
        most = {key: self.most(key) for key in parts}
        longest = {
            key: max((n for row in rows if row and (n := len(row)) <= most[key]), default=0)
            for key, (rows, _) in parts.items()
        }
        sizes = self.lengths.holding(longest)

        def put(key: str, rows: Sequence[Sequence[int] | None], repeat: int) -> None:
            ids = np.zeros((len(rows), sizes[key]), np.int32)
            lengths = np.zeros(len(rows), np.int32)
            for i, row in enumerate(rows):
                if row is None or len(row) > most[key]:
                    ok[i * repeat : (i + 1) * repeat] = False
                    continue
                ids[i, : len(row)] = row
                lengths[i] = len(row)
            batch[f"{key}/ids"] = ids
            batch[f"{key}/lengths"] = lengths

        for key, (rows, repeat) in parts.items():
            put(key, rows, repeat)
        for name, tokenizer in self.receivers.items():
            ids, lengths = (batch[f"{name}/answer/{part}"] for part in ("ids", "lengths"))
            written = (row[:n].tolist() for row, n in zip(ids, lengths, strict=True))
            starts = [first_word(tokenizer, row) for row in written]
            batch[f"{name}/answer/start"] = np.asarray(starts, np.int32)
        for key, tokenizer in sources.items():
            head = len(source_head_ids(self.layout, tokenizer))
            batch[f"{key}/skip"] = np.minimum(head, batch[f"{key}/lengths"]).astype(np.int32)
        batch["valid"] = ok
        return batch

    def most(self, key: str) -> int:
        """The most tokens of a part; a longer row is left out."""
        sources, size = by_key(self.sources), self.lengths[key]
        if key not in sources and not key.endswith("/context"):
            return size
        limit = limit_of(self.layout.max_tokens, sources.get(key))
        return size if limit is None else min(size, limit)

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[list[int]]]:
        """Token ids of every context, for the source and for the receivers."""
        parts: dict[str, list[list[int]]] = {}
        sent: list[int] = []
        for key, tokenizer in by_key(self.sources).items():
            head = source_head_ids(self.layout, tokenizer)
            texts = [source_text(self.layout, group[0]) for group in groups]
            tail = list(tokenizer.tail)
            read = source_ids(self.layout, tokenizer, texts)
            parts[key] = [head + ids + tail for ids in read]
            sent = sent or [len(ids) for ids in read]
        messages = [message_text(self.layout, group[0]) for group in groups]
        for name, tokenizer in self.receivers.items():
            parts[f"{name}/context"] = message_ids(self.layout, tokenizer, messages)
        if self.layout.text_budget is not None:
            for name in self.receivers:
                whole = parts[f"{name}/context"]
                parts[f"{name}/context"] = self._cut(name, groups, messages, whole, sent)
        return parts

    def _cut(
        self,
        receiver: str,
        groups: Sequence[Group],
        texts: Sequence[str],
        whole: Sequence[list[int]],
        sent: Sequence[int],
    ) -> list[list[int]]:
        """The ids that `layout.text_budget` leaves of every text.

        Args:
            receiver: whose ids.
            groups: the contexts.
            texts: their messages in words.
            whole: ids of those; where they are too long they stay, so that they are left out.
            sent: tokens of the first source.
        """
        budget, tokenizer = self.layout.text_budget, self.receivers[receiver]
        assert budget is not None  # the caller looked
        most = limit_of(self.layout.max_tokens, None)

        def encode(text: str) -> list[int]:
            return message_ids(self.layout, tokenizer, [text])[0]

        found = []
        for group, text, ids, tokens in zip(groups, texts, whole, sent, strict=True):
            columns = columns_at(tokens, budget.ratio)
            if most is not None and len(ids) > most:
                found.append(ids)
                continue
            nats = None
            if needs_nats(budget):
                nats = of_tokens(self.nats[text], text, tokenizer, ids)
            row = Cut(text, ids, group[0].question, columns, encode, nats)
            found.append(KEPT[budget.keep](row))
        return found

    def overlaps(self, groups: Sequence[Group], receiver: str) -> np.ndarray:
        """Which of a receiver's tokens share characters with each of the source's tokens.

        Args:
            groups: the contexts.
            receiver: name of the receiver.

        Returns:
            [B, Ts, 2] int32, places in `<receiver>/context/ids`: the first, and the one after the
            last; equal for head and tail, padding, and contexts that are too long.
        """
        ((key, tokenizer),) = by_key(self.sources).items()
        head = len(source_head_ids(self.layout, tokenizer))
        examples = [group[0] for group in groups]
        own = located_sources(self.layout, tokenizer, examples)
        other = located_messages(self.layout, self.receivers[receiver], examples)
        size, most = self.lengths[key], self.lengths[f"{receiver}/context"]
        found = np.zeros((len(groups), size, 2), np.int32)
        for row, mine, theirs in zip(found, own, other, strict=True):
            last = head + len(mine.ids)
            if last + len(tokenizer.tail) <= size and len(theirs.ids) <= most:
                row[head:last] = overlaps(mine.spans, theirs.spans)
        return found

    def rows(
        self, groups: Sequence[Group], flat: Sequence[Example], questions: int
    ) -> dict[str, tuple[Sequence[list[int] | None], int]]:
        """Token ids of every part, and how many questions share one row of it.

        Args:
            groups: the contexts.
            flat: their questions, one after another.
            questions: questions of each context.
        """
        parts: dict[str, tuple[Sequence[list[int] | None], int]] = {}
        parts |= {key: (rows, questions) for key, rows in self.contexts(groups).items()}
        pairs = [asked_pair(self.layout, example) for example in flat]
        for name, tokenizer in self.receivers.items():
            asked = split_joint(self.layout, tokenizer, pairs)
            parts[f"{name}/ask"] = ([a.ask if a else None for a in asked], 1)
            parts[f"{name}/answer"] = ([a.answer if a else None for a in asked], 1)
        return parts


def measure(
    layout: LayoutConfig,
    sources: Sources,
    receivers: dict[str, Tokenizer],
    groups: Sequence[Group],
    max_tokens: int | None = None,
) -> Lengths:
    """Static lengths that hold all the given rows, rounded up.

    Args:
        layout: the receiver's sequence.
        sources: tokenizers of the source.
        receivers: the receivers' tokenizers by name.
        groups: the rows.
        max_tokens: the most tokens of a context; None: no limit.

    Raises:
        UserError: no row is given.
    """
    if not groups:
        raise UserError("data: no rows to measure; give at least one")
    budget = layout.text_budget
    if budget is not None:  # the others keep no more than this one, which needs no question
        layout = replace(layout, text_budget=replace(budget, keep="first"))
    probe, sent = Collate(layout, sources, receivers, Lengths()), by_key(sources)
    flat = [example for group in groups for example in group]
    sizes: dict[str, int] = {}
    long = np.zeros(len(groups), bool)
    for key, (rows, _) in probe.rows(groups, flat, 1).items():
        longest = max((len(row) for row in rows if row is not None), default=1)
        if key in sent or key.endswith("/context"):
            limit = limit_of(max_tokens, sent.get(key))
            if limit is not None:
                over = [row is None or len(row) > limit for row in rows]
                long |= over
                longest = min(longest, limit)
                if budget is not None and key.endswith("/context") and not all(over):
                    longest = max(len(r) for r in rows if r is not None and len(r) <= limit)
        sizes[key] = -(-longest // MULTIPLE) * MULTIPLE
    return Lengths(sizes, len(groups), int(long.sum()))


def limit_of(max_tokens: int | None, reader: Tokenizer | None) -> int | None:
    """The most tokens of a context; a longer one is left out. None: no limit.

    Args:
        max_tokens: of the layout.
        reader: tokenizer of a source, which may have a limit of its own; None: of a receiver.
    """
    if reader is None:
        return max_tokens
    own = max_tokens if reader.limit is None else reader.limit
    limits = [n for n in (own, reader.positions) if n is not None]
    return min(limits, default=None)


def too_long(collate: Collate, groups: Sequence[Group]) -> Lengths:
    """How many contexts are too long; no static length is measured.

    Args:
        collate: a collator, of whatever static lengths.
        groups: the contexts.
    """
    long, sources = np.zeros(len(groups), bool), by_key(collate.sources)
    collate = replace(collate, layout=replace(collate.layout, text_budget=None))
    for key, rows in collate.contexts(groups).items():
        limit = limit_of(collate.layout.max_tokens, sources.get(key))
        if limit is not None:
            long |= [len(row) > limit for row in rows]
    return Lengths(contexts=len(groups), long=int(long.sum()))


def has_row(batch: Batch) -> bool:
    """Whether a batch has a row that is not too long."""
    return bool(batch["valid"].any())
