"""Tools that people know, and how they ask for them: "Wake me at 7" names no tool and no field.

The grammar of `phrases.py` always repeats a description. These requests do not, and the base has
to have met such language before a fine-tune can rely on it. No held-out tool is from here: those
come from the grammar alone. An idiom's slots {0}, {1}, {2} are the values of the fields in their
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from embedded.generate.lists import entries, read, shuffled
from embedded.generate.values import KINDS, Field, Kind, Source, compound

BARE = shuffled("kinds", "bare")


def _listed(name: str, compounds: bool = False) -> Kind:
    """A kind whose values are words of a list, with `compounds` now and then two words."""
    items = entries("vocabulary", name)
    proper = items[0][0].isupper()

    def draw(source: Source) -> str:
        word = source.word(items)
        if proper:
            return word.capitalize()
        return compound(source, word) if compounds else word

    return Kind((), "string", draw, BARE)


def _iso_date(source: Source) -> str:
    def draw() -> str:
        year, month = source.rng.randint(10, 45), source.rng.randint(1, 12)
        return f"20{year}-{month:02d}-{source.rng.randint(1, 28):02d}"

    return source.on_side(draw)


def _day(source: Source) -> str:
    """A date that can follow "on": no tomorrow."""
    while True:
        value = str(KINDS["date"].draw(source))
        if value not in ("today", "tomorrow", "tonight"):
            return value


LISTS = {
    "language": _listed("languages"),
    "currency": _listed("currencies"),
    "country": _listed("countries"),
    "genre": _listed("genres"),
    "dish": _listed("dishes", compounds=True),
    "company": _listed("companies"),
    "room": _listed("rooms"),
    "unit": _listed("units"),
    "topic": _listed("topics", compounds=True),
    "iso": Kind((), "string", _iso_date, KINDS["date"].phrases),
    "day": Kind((), "string", _day, KINDS["date"].phrases),
    "few": Kind((), "integer", lambda source: int(source.digits(1, 2)), KINDS["count"].phrases),
}


# Possible names of a field, with the kind of its values or its options.
FieldPlan = tuple[tuple[str, ...], str | tuple[str, ...]]


@dataclass(frozen=True)
class Everyday:
    """A tool of daily life: its usual names, its description in three parts, fields and idioms."""

    names: tuple[str, ...]
    verb: str
    noun: str
    tails: tuple[str, ...]
    fields: tuple[FieldPlan, ...]
    idioms: tuple[str, ...]

    def new_fields(self, source: Source) -> tuple[Field, ...]:
        return tuple(_field(source, names, kind) for names, kind in self.fields)


def _field(source: Source, names: tuple[str, ...], kind: str | tuple[str, ...]) -> Field:
    name = source.pick(names)
    if isinstance(kind, str):
        found = LISTS.get(kind) or KINDS[kind]
        return Field(name, found, found.type, known=False)
    options = source.rng.sample(kind, min(len(kind), source.rng.randint(2, 4)))
    return Field(name, KINDS["option"], tuple(options), known=False)


def _item(names: str, lines: Sequence[str]) -> Everyday:
    """The tool that a list of words/everyday.txt describes."""
    action, tails = "", ""
    fields: list[FieldPlan] = []
    idioms: list[str] = []
    for line in lines:
        if line.startswith("action: "):
            action, _, tails = line.removeprefix("action: ").rstrip("]").partition("[")
        elif line.startswith("field: "):
            field_names, _, kind = line.removeprefix("field: ").partition(" = ")
            options = tuple(kind.split("|"))
            fields.append((tuple(field_names.split()), options if len(options) > 1 else kind))
        else:
            idioms.append(line)
    # In the file similar idioms are neighbours; shuffled, the held-out fifth is no group of its
    # own.
    Random(len(idioms)).shuffle(idioms)
    verb, _, noun = action.partition(" ")
    ends = tuple(tails.split("|"))
    return Everyday(tuple(names.split()), verb, noun, ends, tuple(fields), tuple(idioms))


# Loaded once: the order of the tools and of their idioms decides what a seed gives.
ITEMS = tuple(_item(names, lines) for names, lines in read("everyday").items())
