"""Rows of texts that the bridges that ship were not trained on: `rows/SET.jsonl`.

    python benchmarks/out_of_template/rows.py

Each set leaves the generated facts (`lw_jax.data.facts`) in one way, with one question a text. The
facts' values are drawn as for the evaluation split, from a seed of their own; statements, questions
and words of other sets are written here. `hand.jsonl` is written by hand, not generated.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lw_jax.data.fact_kinds import Ask, Kind
from lw_jax.data.facts import draw_facts

FOLDER = Path(__file__).parent / "rows"
SEED = 20_260
MANY, FEW = 240, 80
"""Rows of the set that is within the templates, and of each other one."""

Fact = tuple[Kind, dict[str, str]]

STATEMENTS: dict[str, tuple[str, ...]] = {
    "animals": (
        "In the {place} there are {count} {animal}, all of them owned by {who}.",
        "Visitors who come to see {who} are shown {count} {animal} in the {place}.",
        "Altogether {count} {animal} live in the {place} that belongs to {who}.",
        "The {place} of {who} is home to {count} {animal}.",
    ),
    "job": (
        "For many years {city} has known {who} as its {job}.",
        "If you need a {job} in {city}, ask for {who}.",
        "The new {job} in {city} is called {who}.",
        "{who} opened a shop in {city} last year and is now a {job} there.",
    ),
    "purchase": (
        "The shop sold its {colour} {item} to {who} for {price} dollars.",
        "A {colour} {item}, {price} dollars on the label, now stands at the home of {who}.",
        "For {price} dollars the {colour} {item} went to {who}.",
        "The bill of {who} says: one {colour} {item}, {price} dollars.",
    ),
    "birth": (
        "Born {age} years ago in {city}, {who} still goes there in summer.",
        "{city} is where {who} first saw the light of day, {age} years ago.",
        "The parents of {who} lived in {city} when their child was born, {age} years ago.",
        "At {age}, {who} still talks about a childhood in {city}, the town of birth.",
    ),
    "password": (
        "The computer lets {who} in when it is told {password}.",
        "To read mail, {who} enters the word {password}.",
        "Nobody but {who} knows that the password is {password}.",
        "The account of {who} opens with {password}.",
    ),
    "travel": (
        "Every {day} you can meet {who} on train {train}, on the way to {city}.",
        "The {day} ticket of {who} is for train {train} to {city}.",
        "There is a seat for {who} on train {train}, which leaves for {city} on {day}.",
        "On {day} train {train} brings {who} to {city}.",
    ),
}
"""Four other ways to state each kind of fact."""

QUESTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("animals", "count"): ("{who} has how many {animal}?", "Count the {animal} that {who} owns."),
    ("animals", "animal"): ("What kind of animal can be seen at the home of {who}?",),
    ("animals", "place"): ("In what part of the house or farm are the animals that {who} owns?",),
    ("job", "job"): ("How does {who} make money?", "What is the profession of {who}?"),
    ("job", "city"): ("Name the city where {who} has a job.",),
    ("purchase", "price"): (
        "How much money did {who} spend?",
        "What was the price that {who} paid?",
    ),
    ("purchase", "item"): ("Which object is now owned by {who}?", "Name the thing {who} bought."),
    ("purchase", "colour"): ("The thing that {who} bought is of which colour?",),
    ("birth", "age"): ("Tell me the age of {who}.", "How many years old is {who} now?"),
    ("birth", "city"): ("What is the home town of {who}?", "{who} is a native of which city?"),
    ("password", "password"): (
        "With which secret word does {who} log in?",
        "What does {who} type to log in?",
    ),
    ("travel", "train"): ("What is the number of the train that {who} is on?",),
    ("travel", "day"): ("Which day of the week is {who} on the train?",),
    ("travel", "city"): (
        "What is the destination of {who}?",
        "The train takes {who} to which city?",
    ),
}
"""Other ways to ask, by kind and value."""

NEW_CLOSED: dict[str, tuple[str, ...]] = {
    "first": tuple(
        "Agnes Bruno Daria Elmar Fiona Gustav Hilda Ingrid Jakob Lorenz Milena Oskar "
        "Philipp Renate Silvia Tobias Ursula Walter".split()
    ),
    "animal": tuple(
        "otters ferrets badgers peacocks salmon beetles lizards rams weasels "
        "sparrows hedgehogs zebras".split()
    ),
    "place": tuple(
        "pantry balcony greenroom silo cottage field corridor hayloft pond cabinet "
        "harbour terrace".split()
    ),
    "job": tuple(
        "librarian cobbler plasterer notary actor fisherman electrician mechanic "
        "shepherd chef optician glazier".split()
    ),
    "colour": tuple("teal crimson violet orange maroon turquoise".split()),
    "item": tuple(
        "kite wallet telescope typewriter umbrella cradle blanket bracelet wardrobe "
        "camera backpack sledge".split()
    ),
}
"""Words that no closed list has. Days stay: there are no others."""

REAL: dict[str, tuple[str, ...]] = {
    "surname": tuple(
        "Smith Johnson Garcia Miller Davis Martin Thompson Clark Lewis Walker Hall "
        "Young Wright Scott Adams Baker Nelson Carter Mitchell Roberts Turner Phillips "
        "Campbell Parker Evans Edwards Collins Stewart Morris Murphy".split()
    ),
    "city": tuple(
        "Madrid Lisbon Boston Chicago Vienna Dublin Oslo Prague Warsaw Athens Berlin "
        "Geneva Hamburg Toronto Denver Seattle Munich Naples Cairo Lima Osaka Sydney "
        "Houston Bristol".split()
    ),
    "password": tuple(
        "dragon chocolate sunshine monkey football princess shadow thunder coffee "
        "banana winter diamond secret rainbow tiger guitar cookie falcon".split()
    ),
}
"""Real words in the place of the generated open ones."""

ENGLISH = (
    "It had rained all night, and the streets were still wet.",
    "The old bridge over the river will be closed until spring.",
    "Most of the neighbours were at home that evening.",
    "A letter had come in the morning, but nobody had opened it.",
    "The bus was late again, as it so often is.",
    "There was fresh bread on the table.",
    "Someone had left the lights on.",
    "The newspaper wrote about the weather and little else.",
)


@dataclass(frozen=True)
class How:
    """How a set's texts are made.

    Attributes:
        sentences: how many facts a text has.
        change: of the facts' values.
        order: of the facts.
        statements: by kind; None: the templates of training.
        questions: by kind and value; None: those of training.
        finish: of the sentences, with their facts.
    """

    sentences: int = 6
    change: Callable[[list[Fact], random.Random], list[Fact]] = lambda facts, _: facts
    order: Callable[[list[Fact]], list[Fact]] = lambda facts: facts
    statements: dict[str, tuple[str, ...]] | None = None
    questions: dict[tuple[str, str], tuple[str, ...]] | None = None
    finish: Callable[[list[str], list[Fact], random.Random], list[str]] = lambda said, *_: said


def _by_person(facts: list[Fact]) -> list[Fact]:
    people = list(dict.fromkeys(values["who"] for _, values in facts))
    return sorted(facts, key=lambda fact: people.index(fact[1]["who"]))


def _replaced(
    words: dict[str, tuple[str, ...]],
) -> Callable[[list[Fact], random.Random], list[Fact]]:
    """Other words for the same values: the same for the same word, no word for two."""

    def change(facts: list[Fact], rng: random.Random) -> list[Fact]:
        left = {slot: rng.sample(some, len(some)) for slot, some in words.items()}
        known: dict[tuple[str, str], str] = {}

        def other(slot: str, word: str) -> str:
            if slot not in words:
                return word
            if (slot, word) not in known:
                known[slot, word] = left[slot].pop()
            return known[slot, word]

        found = []
        for kind, values in facts:
            new = {slot: other(slot, word) for slot, word in values.items()}
            found.append((kind, new | {"who": f"{new['first']} {new['surname']}"}))
        return found

    return change


def _with_english(said: list[str], _: list[Fact], rng: random.Random) -> list[str]:
    said = list(said)
    for sentence in rng.sample(ENGLISH, 3):
        said.insert(rng.randrange(len(said) + 1), sentence)
    return said


def _this_person(said: list[str], facts: list[Fact], _: random.Random) -> list[str]:
    before, found = "", []
    for sentence, (_kind, values) in zip(said, facts, strict=True):
        again = values["who"] == before
        found.append(sentence.replace(values["who"], "This person", 1) if again else sentence)
        before = values["who"]
    return found


SETS: dict[str, tuple[int, How]] = {
    "in_template": (MANY, How()),
    "sentences_2": (FEW, How(sentences=2)),
    "sentences_4": (FEW, How(sentences=4)),
    "sentences_8": (FEW, How(sentences=8)),
    "sentences_12": (FEW, How(sentences=12)),
    "by_person": (FEW, How(order=_by_person)),
    "with_english": (FEW, How(finish=_with_english)),
    "this_person": (FEW, How(order=_by_person, finish=_this_person)),
    "new_words": (FEW, How(change=_replaced(NEW_CLOSED))),
    "real_names": (FEW, How(change=_replaced(REAL))),
    "questions": (FEW, How(questions=QUESTIONS)),
    "statements": (FEW, How(statements=STATEMENTS)),
}
"""How many rows, and how they are made."""


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a set."""
    count, how = SETS[name]
    for index in range(count):
        rng = random.Random(f"{SEED}/{name}/{index}")
        drawn: list[Fact] = list(draw_facts(how.sentences, "eval", rng))
        facts = how.order(how.change(drawn, rng))
        said = [
            rng.choice(how.statements[kind.name] if how.statements else kind.statements).format_map(
                values
            )
            for kind, values in facts
        ]
        asks = [
            (kind, ask, values) for kind, values in facts for ask in kind.asks if ask.slot != "who"
        ]
        kind, ask, values = rng.choice(asks)
        yield {
            "context": " ".join(how.finish(said, facts, rng)),
            "question": _question(how, kind, ask, values, rng),
            "answer": values[ask.slot],
        }


def _question(how: How, kind: Kind, ask: Ask, values: dict[str, str], rng: random.Random) -> str:
    """Names the person by full name or by surname, as in training."""
    ways = how.questions[kind.name, ask.slot] if how.questions else ask.questions
    who = values["who"] if rng.random() < 0.5 else values["surname"]
    return rng.choice(ways).format_map(values | {"who": who})


def main() -> None:
    """Write every set's file."""
    FOLDER.mkdir(exist_ok=True)
    for name in SETS:
        lines = [json.dumps(row) + "\n" for row in rows(name)]
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(FOLDER / f"{name}.jsonl", len(lines))


if __name__ == "__main__":
    main()
