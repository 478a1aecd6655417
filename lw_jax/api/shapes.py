"""The few shapes that calls are padded to, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lw_jax.text.collate import MULTIPLE

TEXT_RUNG, SLOTS_RUNG, PARTS_RUNG = 16, 8, 1
"""The shortest lengths that texts and questions, latents, and messages in parts are padded to. Each
next one is twice as long, so that few shapes are compiled; from `HALVES` on there is one between
them: 17 lengths up to 8,192 tokens."""
HALVES = 64
"""From this length on, padding costs more than a program."""
ROW_RUNGS = (1, 4, 16)
"""Rows at once; a list is cut into batches of the last, and a batch filled up to one of these."""


def batches(sizes: Sequence[dict[str, int]]) -> Iterable[tuple[dict[str, int], list[int]]]:
    """Rows of equal sizes, as many at once as the largest of `ROW_RUNGS`: sizes and places."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        alike.setdefault(tuple(size.values()), []).append(i)
    for places in alike.values():
        for begin in range(0, len(places), ROW_RUNGS[-1]):
            chunk = places[begin : begin + ROW_RUNGS[-1]]
            yield sizes[chunk[0]], chunk


def rung_of(rows: int) -> int:
    """Rows of the batch that so many rows are filled up to."""
    return next(rung for rung in ROW_RUNGS if rung >= rows)


def rung(first: int, count: int, limit: int | None) -> int:
    """The length that `count` entries are padded to."""
    return rungs(first, count, limit)[-1]


def rungs(first: int, most: int, limit: int | None) -> list[int]:
    """All lengths that up to `most` entries are padded to."""
    found, size = [first], first
    while found[-1] < most:
        if size >= HALVES and size + size // 2 >= most:
            found.append(size + size // 2)
            break
        found += [size + size // 2] * (size >= HALVES) + [2 * size]
        size *= 2
    top = None if limit is None else -(-limit // MULTIPLE) * MULTIPLE
    return sorted({one if top is None else min(one, top) for one in found})
