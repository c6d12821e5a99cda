"""What a tool gave back, and the sentence that says it, both by rule: "The share is 31.5."

Hand-written answers are each put in another way, and a small model blends them; a rule it learns.
"""

from functools import cache
from random import Random

from embedded.english.generate.corpus import Scalar, pool
from embedded.english.generate.entries import Entry, split_name, spoken, styled
from embedded.english.generate.values import person, place

MOST_FIELDS = 2


@cache
def _nouns() -> frozenset[str]:
    return frozenset(pool("nouns"))


def made_up_result(rng: Random, entry: Entry) -> tuple[dict[str, Scalar], str]:
    """One field or two, and a sentence for them."""
    result: dict[str, Scalar] = {}
    for _ in range(rng.randint(1, MOST_FIELDS)):
        result[_key(rng, entry)] = _value(rng)
    return result, say(result)


def say(result: dict[str, Scalar]) -> str:
    """{"share": 31.5, "guests": 4} -> The share is 31.5, and the guests are 4."""
    said = [f"the {spoken(key)} {_verb(key)} {value}" for key, value in result.items()]
    text = ", and ".join(said)
    return text[:1].upper() + text[1:] + "."


def _verb(key: str) -> str:
    is_many = key.endswith("s") and not key.endswith(("ss", "us", "is"))
    return "are" if is_many else "is"


def _key(rng: Random, entry: Entry) -> str:
    """A noun of the tool's name, or any."""
    own = [word for word in split_name(entry.name) if word in _nouns()]
    if own and rng.random() < 0.5:
        return own[-1]
    nouns = [rng.choice(pool("nouns")).partition(" ")[0] for _ in range(rng.choice((1, 1, 2)))]
    return styled(rng, nouns, 0.3)


def _value(rng: Random) -> Scalar:
    form = rng.random()
    if form < 0.25:
        return rng.randint(0, 20) if rng.random() < 0.5 else rng.randint(21, 5000)
    if form < 0.4:
        return round(rng.uniform(0, 300), rng.choice((1, 1, 2)))
    if form < 0.55:
        return person(rng)
    if form < 0.7:
        return place(rng)
    noun = rng.choice(pool("nouns"))
    if form < 0.85:
        return f"{rng.choice(pool('adjectives'))} {noun}"
    hour = f"{rng.randint(0, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    return f"{noun.title()}, {rng.choice(('until', 'from', 'at'))} {hour}"
