"""Entity transfer: which numbers and names of a text reach the output (docs/design.md section 8).

A number is a run of digits with thousands commas or decimals (`numbers.py`). A name is a
capitalised word of at least two letters that stands somewhere else than at the start of a sentence,
or that occurs at least twice without ever being written in lower case; function words are no names.
Possessive `'s` is cut off. An entity counts once however often it occurs, and is found in the
output only as a whole: a number by value, a name by its letters, a noun (`nouns.py`) by its
singular. `entities` are numbers and names, which are found exactly; nouns, which are guessed, stand
apart.
"""

from __future__ import annotations

import re
from collections import Counter

from lw_jax.evaluate.metrics.nouns import nouns, singular
from lw_jax.evaluate.metrics.numbers import numbers

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St)\.\s*$")
_SENTENCE_END = re.compile(r"[.!?:;]['\"”’)]*\s*$|^\s*$|[\n\"“(]\s*$")
_FUNCTION = frozenset(
    """a an and are as at be both but by can did do does during each every find for from had has
    have he her hers his how i if in is it its let me my no not of on one or our out she so some
    that the their them then there these they this those to was we were what when where which while
    who whose why will with would you your after before also another all answer question context
    i'm i've i'll it's he's she's they're if's repeat today
    two three four five six seven eight nine ten""".split()
)


def _words(text: str) -> list[tuple[int, str]]:
    """(start, word without its possessive) of every word."""
    return [(m.start(), re.sub(r"['’]s?$", "", m.group())) for m in _WORD.finditer(text)]


def names(text: str) -> set[str]:
    """The names of a text, by the rule of this module."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    words = _words(text)
    lower = {w for _, w in words if w[:1].islower()}
    for start, word in words:
        if len(word) < 2 or not word[0].isupper() or word.lower() in _FUNCTION:
            continue
        before = text[:start][-12:]
        seen[word] += 1
        if not _SENTENCE_END.search(before) or _TITLE.search(before):
            found.add(word)
    return found | {w for w, n in seen.items() if n > 1 and w.lower() not in lower}


def transferred(gold: str, output: str) -> dict[str, tuple[int, int]]:
    """(found in the output, in the gold text) for `numbers`, `names`, `nouns` and `entities`
    (numbers and names)."""
    gold_numbers, gold_names = set(numbers(gold)), names(gold)
    gold_nouns = nouns(gold)
    said = {word for _, word in _words(output)}
    counts = {
        "numbers": (len(gold_numbers & set(numbers(output))), len(gold_numbers)),
        "names": (len(gold_names & said), len(gold_names)),
    }
    hits, total = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    said_nouns = {singular(word.lower()) for word in said}
    return {
        **counts,
        "entities": (hits, total),
        "nouns": (len(gold_nouns & said_nouns), len(gold_nouns)),
    }
