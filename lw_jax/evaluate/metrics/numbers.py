"""Numbers in text, and the GSM8K scores made of them (Cobbe et al. 2021; docs/design.md section
8)."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_FINAL = re.compile(r"####\s*([-−]?)\s*\$?\s*(" + _NUMBER.pattern + ")")


def canonical(number: str) -> str:
    """One spelling per value: no commas, no trailing zeros of a decimal, no leading zeros."""
    whole, _, part = number.replace(",", "").partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + part if part else "")


def numbers(text: str) -> list[str]:
    """The unsigned numbers of a text in order, canonical: `1,500`, `$2.50`, `3/4` give 1500, 2.5,
    3 and 4. Digits glued to letters count (`5kg`)."""
    return [canonical(n) for n in _NUMBER.findall(text)]


def final_number(text: str) -> str | None:
    """The number after the last `####`, with its sign; without one, the last number of the text."""
    marked = _FINAL.findall(text)
    if marked:
        sign, number = marked[-1]
        return ("-" if sign else "") + canonical(number)
    found = numbers(text)
    return found[-1] if found else None


def final_correct(prediction: str, answer: str) -> float:
    """1.0 if prediction and answer end in the same number."""
    gold = final_number(answer)
    return float(gold is not None and final_number(prediction) == gold)


def partial(prediction: str, question: str) -> float:
    """1.0 if the output has the right format (`#### N`) and says a number of the question."""
    said = set(numbers(prediction))
    return float(bool(_FINAL.search(prediction)) and bool(said & set(numbers(question))))
