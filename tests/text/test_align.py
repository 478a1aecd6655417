"""Tokens of two tokenizers that stand for the same characters."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from lw_jax.text.align import overlaps


def spans(cuts: list[int], length: int) -> list[tuple[int, int]]:
    at = sorted({0, length, *(c % (length + 1) for c in cuts)})
    return list(pairwise(at))


@given(st.lists(st.integers(0, 99)), st.lists(st.integers(0, 99)), st.integers(1, 40))
def test_overlaps_are_those_found_one_by_one(a, b, length):
    own, other = spans(a, length), spans(b, length)
    found = overlaps(own, other)
    for (begin, end), (first, stop) in zip(own, found, strict=True):
        sharing = [i for i, (x, y) in enumerate(other) if x < end and y > begin]
        assert list(range(first, stop)) == sharing


def test_tokens_without_characters_and_bytes_of_one_character():
    own = [(0, 0), (0, 3), (3, 4), (3, 4), (4, 6)]
    other = [(0, 2), (2, 3), (3, 4), (3, 4), (3, 4), (4, 5), (5, 6)]
    expected = [[0, 0], [0, 2], [2, 5], [2, 5], [5, 7]]
    np.testing.assert_array_equal(overlaps(own, other), expected)
    assert overlaps([], other).shape == (0, 2)
    np.testing.assert_array_equal(overlaps(own, []), np.zeros((5, 2)))
