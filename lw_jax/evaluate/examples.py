"""Which questions an evaluation asks, and whose latent each row hears when it is deranged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from lw_jax.data.derange import derangement
from lw_jax.data.example import Example, Rows
from lw_jax.errors import UserError
from lw_jax.text.collate import Collate

_FEW = 1_000_000  # contexts whose order is drawn whole


def choose(rows: Rows, count: int, seed: int) -> list[Example]:
    """`count` questions (0: all): one of every context, in random order, before a second of any,
    because questions about one context are not independent.

    Raises:
        UserError: there is no row.
    """
    rng = np.random.default_rng(seed)
    size = len(rows)
    if size <= _FEW:
        order = rng.permutation(size).tolist()
    else:
        order = list(dict.fromkeys(rng.integers(0, size, count or _FEW).tolist()))
    groups: list[list[Example]] = []
    for i in order:
        if count and len(groups) == count:
            break
        group = list(rows[i])
        groups.append([group[k] for k in rng.permutation(len(group))])
    found: list[Example] = []
    for turn in range(max((len(g) for g in groups), default=0)):
        found += [g[turn] for g in groups if turn < len(g)]
    if not found:
        raise UserError("data: no rows to evaluate; check the file and the split")
    return found[:count] if count else found


def usable(examples: Sequence[Example], collate: Collate) -> list[Example]:
    """The examples that every model can be given; the others are the same for all methods."""
    keep = collate([(e,) for e in examples])["valid"]
    return [e for e, ok in zip(examples, keep, strict=True) if ok]


def others(examples: Sequence[Example]) -> list[int]:
    """Row by row the row of another `context_id`, of its level and about its length.

    Raises:
        UserError: all examples have one context.
    """
    pairs = derangement(
        [e.context_id for e in examples],
        [e.level for e in examples],
        [len(e.context) for e in examples],
    )
    return [int(i) for i in pairs]


def near(examples: Sequence[Example]) -> list[int | None]:
    """Row by row the row of another context of the same article, about as long; None where the
    article has no other context among the rows, or is not known."""
    found: list[int | None] = [None] * len(examples)
    articles: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        if example.article:
            articles.setdefault(example.article, []).append(row)
    for rows in articles.values():
        held = [examples[row] for row in rows]
        if len({e.context_id for e in held}) < 2:
            continue
        pairs = derangement(
            [e.context_id for e in held], [e.level for e in held], [len(e.context) for e in held]
        )
        for row, pair in zip(rows, pairs.tolist(), strict=True):
            found[row] = rows[pair]
    return found


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of the examples, in order."""
    text = "".join(json.dumps(asdict(e), ensure_ascii=False, sort_keys=True) for e in examples)
    return hashlib.sha256(text.encode()).hexdigest()
