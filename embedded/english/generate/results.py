"""What a tool gave back, and the sentence that says it, both by rule: "The share is 31.5."

Hand-written answers are each put in another way, and a small model blends them; a rule it learns.
"""

from collections.abc import Callable
from functools import cache
from random import Random

from embedded.english.generate.corpus import Scalar, pool
from embedded.english.generate.entries import Entry, split_name, spoken, styled
from embedded.english.generate.values import MONTHS, person, place

MOST_FIELDS = 2
STATES = "done sent saved booked confirmed ready open closed full free on off".split()


@cache
def _nouns() -> frozenset[str]:
    return frozenset(pool("nouns"))


def made_up_result(rng: Random, entry: Entry) -> tuple[dict[str, Scalar], str]:
    """One field or two, and a sentence for them."""
    result: dict[str, Scalar] = {}
    for _ in range(rng.randint(1, MOST_FIELDS)):
        key, value = _field(rng, entry)
        result[key] = value
    return result, say(result)


def say(result: dict[str, Scalar]) -> str:
    """{"share": 31.5, "guests": 4} -> The share is 31.5, and the guests are 4."""
    said = [f"the {spoken(key)} {_verb(key)} {value}" for key, value in result.items()]
    text = ", and ".join(said)
    return text[:1].upper() + text[1:] + "."


def _verb(key: str) -> str:
    is_many = key.endswith("s") and not key.endswith(("ss", "us", "is"))
    return "are" if is_many else "is"


def _field(rng: Random, entry: Entry) -> tuple[str, Scalar]:
    """A noun of the tool's name and how it stands, a usual field, or any noun."""
    own = [word for word in split_name(entry.name) if word in _nouns()]
    form = rng.random()
    if form < 0.4:
        key = rng.choice(sorted(USUAL))
        return key, USUAL[key](rng)
    if form < 0.9 and own:
        return own[-1], rng.choice((rng.choice(STATES), _count(rng), _amount(rng)))
    nouns = [rng.choice(pool("nouns")).partition(" ")[0] for _ in range(rng.choice((1, 1, 2)))]
    return styled(rng, nouns, 0.3), rng.choice(list(USUAL.values()))(rng)


def _count(rng: Random) -> int:
    return rng.randint(0, 20) if rng.random() < 0.6 else rng.randint(21, 5000)


def _amount(rng: Random) -> float:
    return round(rng.uniform(0, 300), rng.choice((1, 1, 2)))


def _clock(rng: Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.choice(('00', '15', '30', '45'))}"


def _opening(rng: Random) -> str:
    return f"{place(rng)}, {rng.choice(('until', 'from'))} {_clock(rng)}"


USUAL: dict[str, Callable[[Random], Scalar]] = {
    "status": lambda rng: rng.choice(STATES),
    "count": _count,
    "total": _amount,
    "price": _amount,
    "time": _clock,
    "date": lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
    "place": place,
    "hours": _opening,
    "name": person,
    "number": lambda rng: f"{rng.choice('ABCDEFGHK')}-{rng.randint(100, 9999)}",
}
