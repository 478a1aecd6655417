"""The kinds of facts: their values, how they are stated, and what can be asked about them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from lw_jax.data.words import Role

AnswerType = Literal["number", "closed", "open"]


class Ask(NamedTuple):
    """A question about a fact.

    Attributes:
        slot: the value that answers it ("who": the surname).
        answer: type of the answer.
        questions: the ways to ask.
    """

    slot: str
    answer: AnswerType
    questions: tuple[str, ...]


class Kind(NamedTuple):
    """One kind of fact. Statements name the person first.

    Attributes:
        name: its name.
        numbers: (value, smallest, largest) of its numbers.
        closed: values that are words of closed lists.
        open: (value, role) of its open words.
        unique: closed words by which a person is asked for ("Who keeps goats?"), so no two people
            of a context may share them; open words are always unique.
        statements: the ways to state it.
        asks: the questions about it.
    """

    name: str
    numbers: tuple[tuple[str, int, int], ...]
    closed: tuple[str, ...]
    open: tuple[tuple[str, Role], ...]
    unique: frozenset[str]
    statements: tuple[str, ...]
    asks: tuple[Ask, ...]


ANIMALS = Kind(
    "animals",
    numbers=(("count", 2, 99),),
    closed=("animal", "place"),
    open=(),
    unique=frozenset({"animal"}),
    statements=(
        "{who} keeps {count} {animal} in the {place}.",
        "{who} looks after {count} {animal} in the {place}.",
        "{who} has {count} {animal} in the {place}.",
        "{who} feeds {count} {animal} in the {place} every day.",
    ),
    asks=(
        Ask(
            "count",
            "number",
            ("How many {animal} does {who} keep?", "What is the number of {animal} of {who}?"),
        ),
        Ask(
            "animal",
            "closed",
            ("What animals does {who} keep?", "Which animals belong to {who}?"),
        ),
        Ask(
            "place",
            "closed",
            ("Where does {who} keep animals?", "Where are the animals of {who}?"),
        ),
        Ask("who", "open", ("Who keeps {animal}?", "Who looks after {animal}?")),
    ),
)

JOB = Kind(
    "job",
    numbers=(),
    closed=("job",),
    open=(("city", "city"),),
    unique=frozenset({"job"}),
    statements=(
        "{who} works as a {job} in {city}.",
        "{who} has found work as a {job} in {city}.",
        "{who} moved to {city} to work as a {job}.",
        "{who} earns a living as a {job} in {city}.",
    ),
    asks=(
        Ask("job", "closed", ("What is the job of {who}?", "What does {who} work as?")),
        Ask("city", "open", ("In which city does {who} work?", "Where does {who} work?")),
        Ask("who", "open", ("Who works as a {job}?", "Who is a {job}?")),
    ),
)

PURCHASE = Kind(
    "purchase",
    numbers=(("price", 10, 999),),
    closed=("colour", "item"),
    open=(),
    unique=frozenset({"item"}),
    statements=(
        "{who} bought a {colour} {item} for {price} dollars.",
        "{who} paid {price} dollars for a {colour} {item}.",
        "{who} spent {price} dollars on a {colour} {item}.",
        "{who} got a {colour} {item} for {price} dollars.",
    ),
    asks=(
        Ask(
            "price",
            "number",
            ("How many dollars did {who} pay?", "What did the {item} of {who} cost in dollars?"),
        ),
        Ask("item", "closed", ("What did {who} buy?", "What did {who} pay for?")),
        Ask(
            "colour",
            "closed",
            ("What colour is the {item} of {who}?", "In which colour did {who} buy a {item}?"),
        ),
        Ask("who", "open", ("Who bought a {item}?", "Who paid for a {item}?")),
    ),
)

BIRTH = Kind(
    "birth",
    numbers=(("age", 18, 99),),
    closed=(),
    open=(("city", "city"),),
    unique=frozenset(),
    statements=(
        "{who} was born in {city} and is {age} years old.",
        "{who}, who is {age} years old, was born in {city}.",
        "{who} is {age} years old and comes from {city}.",
        "{who} is a native of {city}, aged {age}.",
    ),
    asks=(
        Ask("age", "number", ("How old is {who}?", "What is the age of {who}?")),
        Ask("city", "open", ("Where was {who} born?", "What is the birthplace of {who}?")),
        Ask("who", "open", ("Who was born in {city}?", "Whose birthplace is {city}?")),
    ),
)

PASSWORD = Kind(
    "password",
    numbers=(),
    closed=(),
    open=(("password", "password"),),
    unique=frozenset(),
    statements=(
        "{who} uses {password} as a password.",
        "{who} has chosen the password {password}.",
        "{who} types the password {password} to log in.",
        "{who} logs in with the secret word {password}.",
    ),
    asks=(
        Ask(
            "password",
            "open",
            ("What is the password of {who}?", "Which password does {who} use?"),
        ),
        Ask("who", "open", ("Whose password is {password}?", "Who has the password {password}?")),
    ),
)

TRAVEL = Kind(
    "travel",
    numbers=(("train", 10, 999),),
    closed=("day",),
    open=(("city", "city"),),
    unique=frozenset(),
    statements=(
        "{who} goes to {city} by train {train} on {day}.",
        "{who} takes train {train} to {city} on {day}.",
        "{who} travels to {city} every {day} by train {train}.",
        "{who} will take train {train} to {city} next {day}.",
    ),
    asks=(
        Ask("train", "number", ("Which train does {who} take?", "What train does {who} take?")),
        Ask("day", "closed", ("On which day does {who} travel?", "When does {who} travel?")),
        Ask(
            "city",
            "open",
            ("To which city does {who} travel?", "Where does {who} go by train?"),
        ),
        Ask("who", "open", ("Who travels to {city}?", "Who takes a train to {city}?")),
    ),
)

NAME = Ask("first", "closed", ("What is the first name of {who}?", "What is {who} called?"))
"""Asked about every person, always by surname."""

KINDS = (ANIMALS, JOB, PURCHASE, BIRTH, PASSWORD, TRAVEL)
