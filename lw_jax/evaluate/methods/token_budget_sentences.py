"""`token_budget_sentences`: the sentences nearest the question, up to the message's columns.

Nearness is the cosine of word counts, each word weighted by how few of the text's sentences have it
(TF-IDF). The nearest are taken first and stay in the order of the text; the first that does not
fit is cut where the budget ends, and is the last. Without a question the first sentences are taken.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from lw_jax.evaluate.methods.base import Cut, Method, left_bytes, reads_text

_END = re.compile(r"""(?<=[.!?])["'\u201d\u2019)\]]*(?=\s)""")


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


def cut(row: Cut) -> list[int]:
    """The ids of the nearest sentences, the last one cut."""
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


METHOD = Method(reads_text, left_bytes, order=45, cut=cut, default=False)
