"""Which of a text's tokens stay where a receiver may have only so many, on the host (no jax).

The first, the last, the sentences nearest the question, or those that surprise the sender most: its
nats given all before it, as in Selective Context (Li et al. 2023, arXiv:2310.06201) and LLMLingua
(Jiang et al. 2023, arXiv:2310.05736).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lw_jax.text.align import Span
from lw_jax.text.layout_config import TextBudget
from lw_jax.text.tokenizer import Tokenizer

Spans = Iterable[tuple[int, int, float]]
"""Of one text: each of the sender's tokens' first character, the one after its last, its nats."""

_END = re.compile(r"""(?<=[.!?])["'\u201d\u2019)\]]*(?=\s)""")
_SLACK = 1e-3
"""39 tokens at 1.3 are 30 columns: a quotient rounded to slightly above 30 must not give 31."""


@dataclass(frozen=True)
class Cut:
    """One row's text on the host, which a method is to cut to the latent's columns.

    Attributes:
        text: that the latent replaces.
        ids: its ids in the receiver's tokens.
        question: that is asked about it; "" if there is none.
        columns: tokens that may stay: receiver columns of the row's latent, or tokens that hold as
            many K/V entries.
        encode: from a text to its ids, as they stand in the message's place.
        nats: of every id, under the sender; None where the method does not ask for them.
    """

    text: str
    ids: Sequence[int]
    question: str
    columns: int
    encode: Callable[[str], list[int]]
    nats: Sequence[float] | None = None


def columns_at(tokens: int, ratio: float) -> int:
    """Slots of a latent that has one for every `ratio` source tokens, of a text of so many."""
    return max(1, math.ceil(tokens / ratio - _SLACK))


def first(row: Cut) -> list[int]:
    """The first ids."""
    return list(row.ids[: row.columns])


def last(row: Cut) -> list[int]:
    """The last ids."""
    return list(row.ids[max(0, len(row.ids) - row.columns) :])


def most_surprising(row: Cut) -> list[int]:
    """The ids with the most nats, of equal ones the first, in the order of the text."""
    nats = row.nats
    assert nats is not None  # asked for
    most = sorted(range(len(row.ids)), key=lambda place: (-nats[place], place))[: row.columns]
    return [row.ids[place] for place in sorted(most)]


def sentences(text: str) -> list[str]:
    """A text in sentences, each with the white space before it; joined they are the text."""
    ends = [found.end() for found in _END.finditer(text)]
    edges = [0, *(end for end in ends if text[end:].strip()), len(text)]
    return [text[a:b] for a, b in pairwise(edges) if b > a]


def nearness(pieces: list[str], question: str) -> list[float]:
    """Of each sentence to the question, 0 to 1."""
    counts = [_words(piece) for piece in pieces]
    held = Counter(word for one in counts for word in one)
    weight = {word: math.log(1 + len(pieces) / n) for word, n in held.items()}
    asked = _weighted(_words(question), weight)
    return [_cosine(asked, _weighted(one, weight)) for one in counts]


def nearest_sentences(row: Cut) -> list[int]:
    """The ids of the sentences nearest the question, up to the budget.

    Nearness is the cosine of word counts, each word weighted by how few of the text's sentences
    have it (TF-IDF). The nearest are taken first and stay in the order of the text; the first that
    does not fit is cut where the budget ends, and is the last. Without a question the first
    sentences are taken.
    """
    if len(row.ids) <= row.columns:
        return list(row.ids)
    pieces = sentences(row.text)
    near = nearness(pieces, row.question)
    taken: dict[int, str] = {}

    def ids(more: Mapping[int, str]) -> list[int]:
        chosen = taken | dict(more)
        text = "".join(chosen[place] for place in sorted(chosen))
        return row.encode(text if row.text[:1].isspace() else text.lstrip())

    for place in sorted(range(len(pieces)), key=lambda place: (-near[place], place)):
        if len(ids({place: pieces[place]})) <= row.columns:
            taken[place] = pieces[place]
            continue
        ends = [found.end() for found in re.finditer(r"\s*\S+", pieces[place])]
        low, high = 0, len(ends)  # words of it that fit
        while low < high:
            middle = (low + high + 1) // 2
            if len(ids({place: pieces[place][: ends[middle - 1]]})) <= row.columns:
                low = middle
            else:
                high = middle - 1
        if low:
            taken[place] = pieces[place][: ends[low - 1]]
        break
    return ids({})[: row.columns]


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def _weighted(counts: Mapping[str, int], weight: Mapping[str, float]) -> dict[str, float]:
    return {word: n * weight[word] for word, n in counts.items() if word in weight}


def _cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    length = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(value * b.get(word, 0.0) for word, value in a.items()) / length if length else 0.0


KEPT: dict[str, Callable[[Cut], list[int]]] = {
    "first": first,
    "last": last,
    "sentences": nearest_sentences,
    "surprisal": most_surprising,
}
"""What stays, by its name in `layout.text_budget.keep`."""


def needs_nats(budget: TextBudget | None) -> bool:
    """Whether a budget asks for every token's nats under the sender."""
    return budget is not None and budget.keep == "surprisal"


def of_tokens(spans: Spans, text: str, tokenizer: Tokenizer, ids: Sequence[int]) -> list[float]:
    """The nats that fall on each token of another tokenizer.

    Args:
        spans: of the text.
        text: the text.
        tokenizer: the other tokenizer.
        ids: the text in its tokens.
    """
    of_character = [0.0] * len(text)
    for begin, end, value in spans:
        for place in range(max(0, int(begin)), min(int(end), len(text))):
            of_character[place] += value / (end - begin)
    return [sum(of_character[a:b]) for a, b in offsets(tokenizer, text, ids)]


def offsets(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[Span]:
    """The characters of each token of a text.

    Args:
        tokenizer: that made them.
        text: the text.
        ids: its tokens, where it begins a sequence or stands within one.
    """
    for start in (False, True):
        (found,) = tokenizer.locate_all([text], start)
        if found.ids == list(ids):
            return found.spans
    raise ValueError(f"{ids[:8]}... are not the tokens of {text[:40]!r}")
