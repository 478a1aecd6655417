"""A few lengths for batches: chosen to pad least, and nothing of a row is lost in one."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from lw_jax.data.example import Example, Group, pieces
from lw_jax.data.facts import FactsRows
from lw_jax.data.source import ListRows
from lw_jax.data.stream import WINDOW, Stream
from lw_jax.text.buckets import borders, bucketed, lengths_of, tokens_of
from lw_jax.text.collate import Collate, has_row, measure
from tests.tiny.receiver import LAYOUT, text_tokenizer


def uneven(count: int) -> list[tuple[Example, ...]]:
    """Texts of one to eight sentences."""
    kinds = [FactsRows("train", 0, level, 500) for level in (1, 1, 1, 2, 3, 8)]
    return [kinds[i % len(kinds)][i][:2] for i in range(count)]


def collate(groups: list[Group], max_tokens: int | None = None) -> Collate:
    source, reads = text_tokenizer("llama"), {"r": text_tokenizer()}
    return Collate(LAYOUT, source, reads, measure(LAYOUT, source, reads, groups, max_tokens))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_other_borders_pad_less(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(60):
        totals = np.sort(rng.integers(1, 6, rng.integers(1, 9))) * 8
        last = len(totals) - 1

        def padded(ends: list[int], totals: np.ndarray = totals) -> int:
            begins = [-1, *ends[:-1]]
            return sum(
                (end - begin) * int(totals[end]) for begin, end in zip(begins, ends, strict=True)
            )

        choices = (
            sorted({*some, last})
            for size in range(count)
            for some in itertools.combinations(range(last), size)
        )
        found = borders(totals, count)
        assert len(found) <= count and found[-1] == last
        assert padded(found) == min(map(padded, choices))


def test_sizes_ascend_and_the_last_is_the_longest() -> None:
    groups = uneven(120)
    whole = collate(groups)
    few = bucketed(whole, groups, 4, 8)
    assert few.lengths.sizes == whole.lengths.sizes
    assert 2 <= len(few.lengths.buckets) <= 4
    for small, large in itertools.pairwise(few.lengths.buckets):
        assert all(small[key] <= large[key] for key in large)
        assert sum(small.values()) < sum(large.values())
    for sizes in few.lengths.shorter:
        assert all(n % 8 == 0 or n == whole.lengths[key] for key, n in sizes.items())
    coarse = bucketed(whole, groups, 4, 64).lengths
    assert all(
        n % 64 == 0 or n == whole.lengths[key]
        for sizes in coarse.shorter
        for key, n in sizes.items()
    )


def test_a_batch_has_the_same_rows_in_less_room() -> None:
    groups = uneven(120)
    whole = collate(groups)
    few = bucketed(whole, groups, 4, 8)
    shapes = set()
    for i in range(0, 120, 6):
        some = sorted(groups, key=pieces)[i : i + 6]
        long, short = whole(some), few(some)
        assert long.keys() == short.keys()
        for key, values in long.items():
            size = short[key].shape[1:]
            cut = values[:, : size[0]] if size else values
            assert np.array_equal(cut, short[key])
            assert not size or not values[:, size[0] :].any()
        sizes = {key.removesuffix("/ids"): x.shape[1] for key, x in short.items() if x.ndim == 2}
        shapes.add(tuple(sizes.values()))
        assert sizes in [dict(one) for one in few.lengths.buckets]
    assert len(shapes) == len(few.lengths.buckets)


def test_rows_that_are_too_long_are_left_out_as_ever() -> None:
    groups = uneven(60)
    whole = collate(groups, max_tokens=40)
    few = bucketed(whole, groups, 3, 8)
    for i in range(0, 60, 6):
        long, short = whole(groups[i : i + 6]), few(groups[i : i + 6])
        assert np.array_equal(long["valid"], short["valid"])
    assert not whole(groups)["valid"].all()
    nothing = bucketed(whole, [g for g in groups if not whole([g])["valid"].any()], 3, 8)
    assert nothing.lengths.shorter == ()


def test_lengths_are_those_of_the_longest_question() -> None:
    groups = uneven(5)
    found, each = (
        lengths_of(collate(groups), groups),
        [collate([g]).rows([g], g, 1) for g in groups],
    )
    for key, values in found.items():
        assert values.tolist() == [max(map(len, rows[key][0])) for rows in each]


def stream(groups: list[tuple[Example, ...]], workers: int = 0, size: int = 8) -> Stream:
    few = bucketed(collate(groups), groups, 4, 8)
    return Stream(
        ListRows(groups, []), few, size, 3, "fit", 1, workers, usable=has_row, length=pieces
    )


def test_every_epoch_has_every_row_once_and_less_padding() -> None:
    groups = uneven(8 * (WINDOW + 9) + 3)  # more than a window, and rows left over
    ours = stream(groups)
    plain = Stream(ours.rows, collate(groups), 8, 3, "fit", usable=has_row)
    steps = len(groups) // 8
    epochs = [
        [i for step in range(epoch * steps, (epoch + 1) * steps) for i in ours.indices(step)]
        for epoch in range(2)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == steps * 8
    assert epochs[0] != epochs[1]
    assert WINDOW == 32  # as `train.buckets` and docs/performance.md say
    window = [i for step in range(WINDOW) for i in ours.indices(step)]
    assert set(window) == {i for step in range(WINDOW) for i in plain.indices(step)}

    def padding(some: Stream) -> float:
        counts = np.asarray([tokens_of(some.batch(step)) for step in range(0, steps, 2)]).sum(0)
        return float(1 - counts[0] / counts[1])

    assert padding(ours) < 0.5 * padding(plain)
    longest = [max(pieces(groups[i]) for i in ours.indices(step)) for step in range(WINDOW)]
    assert longest != sorted(longest)  # batches of all lengths in turn


def test_rows_are_put_together_by_what_becomes_tokens() -> None:
    """Digits and signs are tokens of their own, and few letters of a long word are."""
    words, numbers = "many simple words in a row", "1234, 5678; 90 + 12 = 102."
    assert len(words) == len(numbers)
    asked = Example("c", "c/0", words, "who?", ("she",))
    other = dataclasses.replace(asked, context=numbers)
    assert pieces((asked,)) == 6 + 3
    assert pieces((other,)) == 20 + 3
    assert pieces((asked, dataclasses.replace(asked, question="who, then?"))) == 6 + 5


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_any_step(workers: int) -> None:
    groups = uneven(4 * (WINDOW + 3))
    first = stream(groups, size=4)
    expected = [first.batch(step) for step in range(30, 40)]  # over windows and epochs
    again = Stream(first.rows, first.collate, 4, 3, "fit", 1, workers, has_row, pieces)
    for one, other in zip(again.iterate(30, 40), expected, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in other)
