"""Numbers in text, and the GSM8K scores made of them (Cobbe et al. 2021; docs/design.md section
8)."""

from __future__ import annotations

import re
import unicodedata

# A point begins a number (`$.25`), unless it ends a word, a sentence or an ellipsis (`No.5`,
# `...42`); a comma within one parts thousands, unless it parts the numbers of a list (`1,2,345`),
# and so does a space where no line is broken (a plain one parts two numbers). Digits are of any
# script.
_NUMBER = re.compile(
    r"(?:(?<!\d,)\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    r"|(?<![\w.)\]}%!?…])\.\d+"
)
_PARTED = ",\u00a0\u202f\u2009"
# A sign of any currency, escaped or not, and letters that are a part of it (`US$`).
_CURRENCY = r"(?:[A-Z]{0,3}\\?[$¢-¥฿₠-⃀＄￠￡￥￦])"
_FINAL = re.compile(
    rf"####\s*(?:{_CURRENCY}\s*)?[-−–‐‑﹣－+]?\s*(?:{_CURRENCY}\s*)?{_NUMBER.pattern}"
)
# A minus before a number, unless it stands between two numbers of a line (`10 -5`) or words; right
# after the mark any dash is one.
_MINUS = re.compile(rf"(?:^|[^\w\s)\]%]|[^\d\s)\]%]\s+|^\s+|[\r\n]\s*)[-−－]{_CURRENCY}?$")
_DASH = re.compile(rf"[*_(\[{{\\\s]*(?:{_CURRENCY}\s*)?[-−–‐‑﹣－]\s*(?:{_CURRENCY}\s*)?")


def canonical(number: str) -> str:
    """One spelling per value: digits 0 to 9, nothing between thousands, no trailing zeros of a
    decimal, no leading zeros."""
    kept = (c if c == "." else str(unicodedata.decimal(c)) for c in number if c not in _PARTED)
    whole, _, part = "".join(kept).partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + part if part else "")


def numbers(text: str) -> list[str]:
    """The unsigned numbers of a text in order, canonical: `1,500`, `$2.50`, `$.25`, `3/4`, `1,2`
    give 1500, 2.5, 0.25, 3 and 4, 1 and 2. Digits glued to letters count (`5kg`)."""
    return [canonical(n) for n in _NUMBER.findall(text)]


def final_number(text: str) -> str | None:
    """The first number on the line of the first `####` that has one, with its sign: a model that
    goes on after its solution writes more marks. Without one, the last number of the text, with its
    sign."""
    for part in text.split("####")[1:]:
        line = part.lstrip().partition("\n")[0]
        found = _NUMBER.search(line)
        if found:
            return _signed(line[: found.start()], found.group(), marked=True)
    every = list(_NUMBER.finditer(text))
    return _signed(text[: every[-1].start()], every[-1].group()) if every else None


def _signed(before: str, number: str, marked: bool = False) -> str:
    """A number, canonical, with the sign that the text before it gives it."""
    value = canonical(number)
    minus = _MINUS.search(before) or (marked and _DASH.fullmatch(before))
    return f"-{value}" if minus and value != "0" else value


def final_correct(prediction: str, answer: str) -> float:
    """1.0 if prediction and answer end in the same number."""
    gold = final_number(answer)
    return float(gold is not None and final_number(prediction) == gold)


def partial(prediction: str, question: str) -> float:
    """1.0 if the output has the right format (`#### N`) and says a number of the question."""
    said = set(numbers(prediction))
    return float(bool(_FINAL.search(prediction)) and bool(said & set(numbers(question))))
