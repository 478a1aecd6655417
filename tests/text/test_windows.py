"""Windows of a long text: whole sentences that fit, which together are the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lw_jax.text.windows import windows

SENTENCES = "Ada has 7 goats. Ben has 3.5 hens! \nWho  knows? “He does.” Mr. X left\nThe end"


def short(most: int):
    return lambda text: len(text.strip()) <= most


def cut(text: str, most: int) -> list[str]:
    return list(windows([text], short(most)))


def test_windows_are_whole_sentences() -> None:
    assert cut(SENTENCES, 1000) == [SENTENCES]
    assert [w.strip() for w in cut(SENTENCES, 20)] == [
        "Ada has 7 goats.",
        "Ben has 3.5 hens!",
        "Who  knows?",
        "“He does.” Mr.",
        "X left\nThe end",
    ]


def test_what_does_not_fit_is_cut_between_words_and_then_between_characters() -> None:
    assert cut("one two three four", 9) == ["one two ", "three ", "four"]
    assert cut("abcdefghij klm", 4) == ["abcd", "efgh", "ij ", "klm"]


@given(
    st.text('ab .!?\n"é', max_size=80), st.integers(1, 30), st.lists(st.integers(1, 9), max_size=9)
)
def test_windows_are_the_text_and_fit_however_it_comes(
    text: str, most: int, sizes: list[int]
) -> None:
    found = cut(text, most)
    assert "".join(found) == text
    assert all(short(most)(one) and one for one in found)
    pieces, rest = [], text
    for size in sizes:
        pieces, rest = [*pieces, rest[:size]], rest[size:]
    assert list(windows([*pieces, rest], short(most))) == found


@given(st.lists(st.sampled_from(["One. ", "Two two two! ", "Three three? "]), max_size=20))
def test_texts_that_meet_at_a_border_have_the_windows_of_both(sentences: list[str]) -> None:
    found = cut("".join(sentences), 20)
    for i in range(len(found)):
        first, second = "".join(found[:i]), "".join(found[i:])
        assert cut(first, 20) + cut(second, 20) == found
