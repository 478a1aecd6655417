"""The few shapes that calls are padded to, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lw_jax.text.collate import MULTIPLE

TEXT_RUNG, SLOTS_RUNG, PARTS_RUNG = 16, 8, 1
"""The shortest lengths that texts and questions, latents, and messages in parts are padded to. Each
next one is twice as long, so that few shapes are compiled."""
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
    size = first
    while size < count:
        size *= 2
    return size if limit is None else min(size, -(-limit // MULTIPLE) * MULTIPLE)


def rungs(first: int, most: int, limit: int | None) -> list[int]:
    """All lengths that up to `most` entries are padded to."""
    whole = [first]
    while whole[-1] < most:
        whole.append(2 * whole[-1])
    return sorted({rung(first, size, limit) for size in whole})
