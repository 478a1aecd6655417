"""Vocabularies of the generated facts: closed lists, and open words split by a hash.

An open word is a string of syllables. Its split is a function of its letters alone, so a word of
the evaluation is never seen in training, in any role, by any model that this project trains.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Literal, NamedTuple

from lw_jax.data.example import Split

ONSETS = "bdfgjklmnprstvz"
VOWELS = "aeiou"
CODAS = "bfgkmpvz"  # few English words end like this: no plural, no -ed, no -er
SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in VOWELS)
LAST_SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in "iou")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words of natural text (GSM8K, XQuAD) in the form of an open word. They are never generated, so the
# hash decides for every other word of that form in which split it may occur.
NATURAL = frozenset(
    _words(
        """bebaf derek develop dorito figaro forum jafari kabob kalani kaleb kamari kimiko lopez
        malibu malik manolo minimum nalani perez potato rubik safari salami salem serum setup
        sudoku terez tomato topaz tulip venom"""
    )
)

Role = Literal["surname", "city", "password"]


class Form(NamedTuple):
    """The form of a role's words.

    Attributes:
        syllables: number of syllables.
        tails: endings, which mark the role.
        capital: whether they are capitalised.
    """

    syllables: int
    tails: tuple[str, ...]
    capital: bool


FORMS: dict[Role, Form] = {
    "surname": Form(2, tuple(CODAS), True),  # Tovek
    "city": Form(2, LAST_SYLLABLES, True),  # Dakelu
    "password": Form(3, tuple(CODAS), False),  # zenaluk
}

_OPEN = re.compile(
    f"([{ONSETS}][{VOWELS}]){{2}}([{CODAS}]|[{ONSETS}][iou]|[{ONSETS}][{VOWELS}][{CODAS}])"
)


def open_split(word: str) -> Split | None:
    """The split that an open word belongs to (case does not matter); None: it is another word."""
    lower = word.lower()
    if lower in NATURAL or not _OPEN.fullmatch(lower):
        return None
    return _hashed(lower)


def _hashed(lower: str) -> Split:
    bucket = hashlib.blake2b(lower.encode(), digest_size=1).digest()[0] & 7
    return "eval" if bucket == 0 else "validation" if bucket == 1 else "train"


def open_word(role: Role, split: Split, rng: random.Random) -> str:
    """A random word of `split`, with about 16 (surname) to 22 bits (password)."""
    count, tails, capital = FORMS[role]
    draw = rng.random
    while True:
        word = tails[int(draw() * len(tails))]
        for _ in range(count):
            word = SYLLABLES[int(draw() * len(SYLLABLES))] + word
        if _hashed(word) == split and word not in NATURAL:
            return word.capitalize() if capital else word


FIRST_NAMES = _words(
    """Ada Alma Anton Aron Bela Boris Carla Celia Clara Cyril Dana Diego Dora Edgar Edith Elena
    Emil Enzo Erika Esther Eva Felix Flora Frida Gloria Greta Hanna Hector Helga Hugo Ida Igor
    Ilse Ines Irma Ivan Jasper Jonas Julia Karl Klara Lars Laura Leo Linda Louis Luisa Marco Maria
    Mario Marta Milo Nadia Nina Nora Olga Oscar Otto Paula Petra Rita Rosa Sofia Viktor"""
)
ANIMALS = _words(
    """bees camels cats cows crows dogs donkeys doves ducks eels foxes frogs geese goats hamsters
    hares hens horses llamas mice mules owls parrots pigeons pigs ponies rabbits rats sheep snails
    snakes swans toads turkeys turtles wasps"""
)
PLACES = _words(
    """attic backyard barn basement cabin cave cellar chapel courtyard forest garage garden
    greenhouse hall kitchen loft meadow mill orchard park pasture quarry shed stable swamp tower
    tunnel valley vineyard yard"""
)
JOBS = _words(
    """baker banker barber brewer builder butcher carpenter chemist clerk cook dancer dentist diver
    doctor driver farmer fireman gardener guard hunter jeweller judge lawyer mason miner nurse
    painter pilot plumber poet porter potter printer sailor singer surgeon tailor teacher waiter
    weaver"""
)
COLOURS = _words("""beige black blue brown golden green grey pink purple red silver white yellow""")
ITEMS = _words(
    """basket bed bell bench bicycle book boat bottle bowl box brush bucket candle carpet chair
    clock coat cup desk drum fan flute guitar hammer hat jacket kettle knife ladder lamp mirror
    necklace piano pillow plate ring rope saddle scarf shirt sofa spoon table tent trumpet vase
    violin watch"""
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

CLOSED: dict[str, tuple[str, ...]] = {
    "first": FIRST_NAMES,
    "animal": ANIMALS,
    "place": PLACES,
    "job": JOBS,
    "colour": COLOURS,
    "item": ITEMS,
    "day": DAYS,
}
