"""Exact match and F1 as the official SQuAD 2.0 script computes them (Rajpurkar et al. 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers after normalisation, else 0.0."""
    return max(float(normalise(prediction) == normalise(a)) for a in answers or ("",))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of the words shared with one of the answers, in [0, 1]."""
    return max(_f1(prediction, a) for a in answers or ("",))


def _f1(prediction: str, answer: str) -> float:
    said, gold = normalise(prediction).split(), normalise(answer).split()
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(gold)
    return 2 * precision * recall / (precision + recall)
