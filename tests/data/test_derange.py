"""Deranging: another context for every row, near in level and length, always the same."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lw_jax.data.derange import derangement
from lw_jax.errors import UserError

ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 3), st.integers(0, 50)),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({context for context, _, _ in rows}) > 1)


@given(ROWS)
def test_every_row_gets_another_context(rows):
    ids, levels, lengths = (list(column) for column in zip(*rows, strict=True))
    partner = derangement(ids, levels, lengths)
    assert all(ids[p] != ids[i] for i, p in enumerate(partner))
    np.testing.assert_array_equal(partner, derangement(ids, levels, lengths))


@given(ROWS)
def test_within_a_level_it_is_a_permutation_where_one_exists(rows):
    ids, levels, _ = (list(column) for column in zip(*rows, strict=True))
    partner = derangement(ids, levels)
    for level in set(levels):
        members = [i for i in range(len(ids)) if levels[i] == level]
        if 2 * max(Counter(ids[i] for i in members).values()) <= len(members):
            assert sorted(partner[members]) == members


def test_squad_like_rows_are_deranged_where_a_roll_is_not():
    ids = ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    rolled = np.roll(np.arange(15), 1)
    assert sum(ids[i] == ids[p] for i, p in enumerate(rolled)) == 12
    assert sorted(derangement(ids)) == list(range(15))


def test_partners_have_about_the_same_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 500, 200).tolist()
    partner = derangement([str(i) for i in range(200)], lengths=lengths)
    gaps = [abs(lengths[p] - lengths[i]) for i, p in enumerate(partner)]
    assert np.median(gaps) <= 5


def test_contexts_follow_each_other_by_their_shortest_row():
    """b's rows lie between a's, so by its longest row a would come after b."""
    partner = derangement(list("aabbcc"), lengths=[10, 40, 20, 30, 50, 60])
    assert partner.tolist() == [2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize("half", [1, 4])
def test_a_context_with_half_of_the_rows_gets_each_of_the_others_once(half):
    ids = ["a"] * half + [f"b{i}" for i in range(half)]
    partner = derangement(ids)
    assert sorted(partner) == list(range(2 * half))
    assert set(partner[:half]) == set(range(half, 2 * half))


def test_a_context_with_most_of_the_rows_still_gets_others():
    ids = ["a"] * 9 + ["b", "c"]
    partner = derangement(ids)
    assert all(ids[p] != ids[i] for i, p in enumerate(partner))
    assert set(partner[:9]) == {9, 10}


@pytest.mark.parametrize("ids", [["a"], ["a", "a", "a"], []])
def test_one_context_cannot_be_deranged(ids):
    with pytest.raises(UserError, match="one context; give rows of at least two contexts"):
        derangement(ids)
