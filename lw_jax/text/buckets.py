"""A few lengths for batches, so that short texts are not padded to the longest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lw_jax.data.example import Group
from lw_jax.text.collate import Batch, Collate

TILE = 64
"""Of an accelerator's matrix products: sizes are multiples of so many tokens there."""


def bucketed(collate: Collate, groups: Sequence[Group], count: int, multiple: int) -> Collate:
    """The same collator whose batches have one of at most `count` lengths.

    The borders are those with which these contexts would be padded least, each context to the first
    length that holds it (dynamic programming over all borders). A length has a size for every part
    of a batch, and no part of a longer one is smaller.

    Args:
        collate: its static lengths are the longest.
        groups: the contexts, as they were measured for those.
        count: lengths at most.
        multiple: sizes are multiples of so many tokens, unless they are the longest.
    """
    longest = dict(collate.lengths.sizes)
    keys = list(longest)
    lengths = lengths_of(collate, groups)
    table = np.stack([lengths[key] for key in keys], axis=1)  # [contexts, parts]
    most = np.asarray([longest[key] for key in keys])
    table = table[(table <= [collate.most(key) for key in keys]).all(axis=1)]
    if not len(table) or count < 2:
        return collate
    table = np.minimum(-(-np.maximum(table, 1) // multiple) * multiple, most)
    table = table[np.argsort(table.sum(axis=1), kind="stable")]
    sizes = np.maximum.accumulate(table, axis=0)  # what a border after each context would need
    sizes[-1] = most
    ends = borders(sizes.sum(axis=1), count)
    shorter = tuple(dict(zip(keys, sizes[end].tolist(), strict=True)) for end in ends[:-1])
    return dataclasses.replace(
        collate, lengths=dataclasses.replace(collate.lengths, shorter=shorter)
    )


def lengths_of(collate: Collate, groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Tokens of every part of each context [n], of its longest question and answer; a question
    that cannot be split from its answer has none."""
    flat = [example for group in groups for example in group]
    first = np.cumsum([0, *(len(group) for group in groups)])[:-1]
    found = {}
    for key, (rows, questions) in collate.rows(groups, flat, 0).items():
        each = np.asarray([0 if row is None else len(row) for row in rows])
        found[key] = each if questions == 0 else np.maximum.reduceat(each, first)
    return found


def borders(totals: np.ndarray, count: int) -> list[int]:
    """Where the first groups of ascending totals [n] end, so that the sum over groups of their
    size times their last total is least; at most `count` groups, the last end being n - 1.

    Args:
        totals: tokens of each context, ascending.
        count: groups at most.
    """
    ends = np.flatnonzero(np.append(np.diff(totals) > 0, True))
    cost = (ends + 1) * totals[ends]  # of one group up to each end
    before: list[np.ndarray] = []
    for _ in range(min(count, len(ends)) - 1):
        # cost[j] or, where the last group begins after end i, cost[i] + (ends j - i) * total j
        split = cost[:, None] + (ends[None, :] - ends[:, None]) * totals[ends][None, :]
        split = np.where(np.arange(len(ends))[:, None] < np.arange(len(ends))[None, :], split, cost)
        choice = np.argmin(split, axis=0)
        before.append(choice)
        cost = split[choice, np.arange(len(ends))]
    found, at = [], len(ends) - 1
    for choice in reversed(before):
        found.append(int(ends[at]))
        if choice[at] >= at:  # one group less is as good
            continue
        at = int(choice[at])
    return sorted({*found, int(ends[at])})


def tokens_of(batch: Batch) -> tuple[int, int]:
    """Tokens of a batch on the host, and places for them, padding included."""
    keys = [key for key in batch if key.endswith("/ids")]
    real = sum(int(batch[f"{key.removesuffix('/ids')}/lengths"].sum()) for key in keys)
    return real, sum(batch[key].size for key in keys)
