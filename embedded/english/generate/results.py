"""What a tool gave back, and the sentence that says it, both by rule: "The share is 31.5."

Hand-written answers are each put in another way, and a small model blends them; a rule it learns.
"""

from collections.abc import Callable
from functools import cache
from random import Random

from embedded.english.generate.corpus import Scalar, Tool, pool
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


# The nouns of a tool's name that tell what it gives back, by the usual field that is like it.
TOLD = {
    "price": "price cost fee fare balance rate bill tax tip salary refund quote discount budget",
    "time": "time times departure arrival sunrise sunset bedtime hours",
    "date": "birthday deadline holiday expiry due",
    "count": "count score points calories steps stock seats",
    "name": "owner author contact teacher doctor manager winner customer employee host",
    "place": "address location station restaurant restaurants shop shops hotel hotels place office",
    "number": "number code id reference ticket serial",
}
GIVES = {noun: field for field, nouns in TOLD.items() for noun in nouns.split()}
# What is done and not asked for: to these a function answers that it is done.
ACTIONS = frozenset(
    "add apply approve archive assign block book buy call cancel change clear close create delete "
    "disable donate enable enroll exchange extend file forward grant hide install join leave log "
    "mark merge move mute open order pause pay play post print publish refund register remove "
    "rename renew rent reorder reply report request reschedule reserve reset restart restore "
    "return revoke save schedule send set share sign snooze start stop submit swap switch transfer "
    "unlock unsubscribe update upgrade upload".split()
)


def telling_result(rng: Random, tool: Tool) -> dict[str, Scalar] | None:
    """What a tool of this name could give back: that it is done, at times with a number, or a value
    of the kind that a word of the name tells; None where none does.
    """
    words = split_name(tool.name)
    if not ACTIONS.isdisjoint(words):
        number = {"number": USUAL["number"](rng)} if rng.random() < 0.5 else {}
        return {"status": rng.choice(("done", "confirmed", "ok")), **number}
    told = [word for word in words if word in GIVES]
    return {told[-1]: USUAL[GIVES[told[-1]]](rng)} if told else None
