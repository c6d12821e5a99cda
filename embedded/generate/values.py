"""The random stream, and fields with their values: a field's name, JSON type, value and phrases.

A value is the same in the JSON and in the words of the request, piece for piece, so that filling a
field is copying. Values of the held-out side are drawn until their checksum lies on that side.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedded.generate import words
from embedded.generate.lists import Templates, entries, shuffled
from embedded.generate.words import mine, side, templates

Scalar = str | int | float | bool
Item = TypeVar("Item")
# A word of a template: lower-case letters that are not a slot.
WORD = re.compile(r"(?<![{\w])[a-z]+(?![}\w])")
CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and no O, which look like digits
# Share of words replaced by invented ones: with known words alone, copying would become
# recognising.
MADE_UP = 0.35


@dataclass
class Source:
    """A random stream on one side of the split.

    The order of the draws is the format: one draw more or less anywhere changes everything after
    it, and with it the committed rows. A share of zero therefore often draws nothing at all.
    """

    rng: random.Random
    # The held-out side of the split, or the training side.
    held: bool = False
    # Share of invented words among names and values.
    made_up: float = MADE_UP
    # Chance that a template's own words are replaced by invented ones: a value is then recognised
    # by its place and its marks, not by one known wording.
    blur: float = 0.0
    # Knows the words of both sides, as a base model knows its language. Templates, numbers,
    # composed values and invented words stay on their side.
    fluent: bool = False
    # Share of entries, near misses apart, that are tools of daily life.
    everyday: float = 0.25
    # Share of requests, where they still have one reading, that leave the verb to the reader.
    verbless: float = 0.15
    # Share of fields, everyday tools apart, that another entry of the list has too.
    shared: float = 0.0
    # Share of requests, everyday tools apart, in the forms of `natural.py`. Above zero, some verbs
    # and values have two words.
    natural: float = 0.0

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, items: Sequence[Item]) -> Item:
        # Not rng.choice: it draws bits until they fit, so a longer list could cost more draws.
        return items[int(self.rng.random() * len(items))]

    def template(self, texts: tuple[Item | None, ...]) -> Item:
        """A template of this side."""
        return self.pick(templates(texts, self.held))

    def wording(self, texts: Templates) -> str:
        """A template of a request, with its words blurred now and then; slots and marks stay."""
        text = self.template(texts)
        if not self.chance(self.blur):
            return text
        return WORD.sub(lambda match: self.invent() if self.chance(0.5) else match[0], text)

    def word(self, words: tuple[str, ...], spare: tuple[str, ...] = ()) -> str:
        """A word of this side, or an invented one; `spare` where a short list has none here."""
        known = self.known(words) or self.known(spare)
        return self.invent() if not known or self.chance(self.made_up) else self.pick(known)

    def known(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The words of a list that this stream may use."""
        return words if self.fluent else mine(words, self.held)

    def on_side(self, draw: Callable[[], str]) -> str:
        """Draws until a text is on this side; endless if `draw` only has texts of the other."""
        while True:
            text = draw()
            if side(text) == self.held:
                return text

    def invent(self) -> str:
        """A word of no list: syllables, or the start of one word and the end of another.

        The second kind brings every piece of the tokenizer into words that must be copied.
        """
        return self.on_side(self._crossed if self.chance(0.5) else self._syllables)

    def _crossed(self) -> str:
        first, second = self.pick(words.ALL), self.pick(words.ALL)
        start = first[: self.rng.randint(1, len(first))]
        return start + second[self.rng.randint(0, len(second) - 1) :]

    def _syllables(self) -> str:
        parts = (words.ONSETS, words.VOWELS, words.CODAS)
        count = self.pick((1, 2, 2, 2, 3, 3))
        return "".join(self.pick(part) for _ in range(count) for part in parts)

    def digits(self, low: int, high: int) -> str:
        """The digits of a number of `low` to `high` places."""

        def draw() -> str:
            places = self.rng.randint(low, high)
            return str(self.rng.randint(10 ** (places - 1), 10**places - 1))

        return self.on_side(draw)


@dataclass(frozen=True)
class Kind:
    """A kind of field: usual names, JSON type, sampler, phrases that leave out the name."""

    names: tuple[str, ...]
    type: str
    draw: Callable[[Source], Scalar]
    phrases: Templates


@dataclass(frozen=True)
class Field:
    """A field: `type` is a JSON type or the options; `known` if the name shows the kind."""

    name: str
    kind: Kind
    type: str | tuple[str, ...]
    known: bool

    @property
    def spoken(self) -> str:
        return self.name.replace("_", " ")


def _capital(source: Source, words: tuple[str, ...]) -> str:
    return source.word(words).capitalize()


def _person(source: Source) -> str:
    first = _capital(source, words.NAMES)
    return f"{first} {_capital(source, words.SURNAMES)}" if source.chance(0.4) else first


def _city(source: Source) -> str:
    place = _capital(source, words.CITIES)
    if source.chance(0.1):
        return f"{source.pick(('New', 'Port', 'Lake', 'Mount'))} {place}"
    return place


def _email(source: Source) -> str:
    def draw() -> str:
        user = source.word(words.NAMES).lower()
        if source.chance(0.4):
            user += source.pick(".-_") + source.word(words.SURNAMES).lower()
        number = str(source.rng.randint(1, 99)) if source.chance(0.35) else ""
        return f"{user}{number}@{source.word(words.DOMAINS)}.{source.pick(words.ENDINGS)}"

    return source.on_side(draw)


def _date(source: Source) -> str:
    if source.chance(0.35):
        return source.word(words.WEEKDAYS)

    def draw() -> str:
        day, month = source.rng.randint(1, 28), source.pick(words.MONTHS)
        if source.chance(0.5):
            return f"20{source.rng.randint(10, 45)}-{source.rng.randint(1, 12):02d}-{day:02d}"
        return source.pick((f"{day} {month}", f"{month} {day}"))

    return source.on_side(draw)


def _time(source: Source) -> str:
    def draw() -> str:
        if source.chance(0.5):
            return f"{source.rng.randint(1, 12)} {source.pick(('am', 'pm'))}"
        return f"{source.rng.randint(0, 23):02d}:{source.rng.randint(0, 59):02d}"

    return source.on_side(draw)


def _code(source: Source) -> str:
    def draw() -> str:
        letters = "".join(source.pick(CAPITALS) for _ in range(source.rng.randint(1, 3)))
        number = "".join(source.pick("0123456789") for _ in range(source.rng.randint(2, 4)))
        low = letters.lower()
        forms = (f"{letters}-{number}", letters + number, f"{low}_{number}", number + letters)
        return source.pick(forms)

    return source.on_side(draw)


def _text(source: Source) -> str:
    count = source.pick((1, 1, 2, 2, 3))
    lists = (words.NOUNS, words.ADJECTIVES, words.TOPICS, words.PRODUCTS)
    return " ".join(source.word(source.pick(lists)) for _ in range(count)).replace("_", " ")


def _amount(source: Source) -> Scalar:
    if source.chance(0.5):
        return int(source.digits(1, 4))
    while True:
        number = round(source.rng.uniform(0.1, 300), source.pick((1, 2)))
        if side(str(number)) == source.held and number != int(number):
            return number


def _address(source: Source) -> str:
    """A house number and a street, as in 12 Mill Street."""

    def draw() -> str:
        lists = (words.SURNAMES, words.NOUNS, words.NAMES, words.PRODUCTS)
        name = source.word(source.pick(lists)).split("_")[0].capitalize()
        return f"{source.rng.randint(1, 199)} {name} {source.pick(words.STREETS)}"

    return source.on_side(draw)


def compound(source: Source, word: str) -> str:
    """The word, or in a natural stream now and then one before it, as in "lentil soup"."""
    if source.natural and source.chance(0.4):
        before = source.word(source.pick((words.PRODUCTS, words.ADJECTIVES, words.NOUNS)))
        return f"{before.replace('_', ' ')} {word}"
    return word


def _name(words_: tuple[str, ...]) -> Callable[[Source], Scalar]:
    return lambda source: compound(source, source.word(words_))


def _kind(name: str, json_type: str, draw: Callable[[Source], Scalar]) -> Kind:
    """A kind with the names and phrases of words/kinds.txt."""
    return Kind(entries("kinds", f"{name} names"), json_type, draw, shuffled("kinds", name))


KINDS = {
    "city": _kind("city", "string", _city),
    "person": _kind("person", "string", _person),
    "email": _kind("email", "string", _email),
    "date": _kind("date", "string", _date),
    "time": _kind("time", "string", _time),
    "count": _kind("count", "integer", lambda source: int(source.digits(1, 3))),
    "amount": _kind("amount", "number", _amount),
    "code": _kind("code", "string", _code),
    "text": _kind("text", "string", _text),
    "product": _kind("product", "string", _name(words.PRODUCTS)),
    "subject": _kind("subject", "string", _name(words.TOPICS)),
    "option": _kind("option", "option", _name(words.OPTIONS)),
    "address": _kind("address", "string", _address),
    "flag": Kind(words.FLAGS, "boolean", lambda source: source.chance(0.5), phrases=()),
}
# How often each kind is drawn, in percent or so. Addresses come up in natural streams alone.
WEIGHTS = {"city": 10, "person": 9, "email": 5, "date": 9, "time": 5, "count": 12, "amount": 7}
WEIGHTS |= {"code": 7, "text": 10, "product": 6, "subject": 5, "option": 12, "flag": 4}


def new_field(source: Source, kind_name: str | None = None) -> Field:
    """A field of a random kind, with one of its usual names or, often, a name that says nothing."""
    if kind_name is None and source.natural and source.chance(0.5 * source.natural):
        kind_name = "address"
    kind = KINDS[kind_name or source.rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]]
    usual = source.known(kind.names)
    has_usual_name = bool(usual) and not source.chance(source.made_up)
    # Training never shows what a held-out name means.
    known = has_usual_name and not source.held
    if has_usual_name:
        name = source.pick(usual)
    else:
        is_invented = source.chance(min(0.6, 2 * source.made_up))
        name = source.invent() if is_invented else source.word(words.NOUNS)
        name += f"_{source.word(words.NOUNS)}" if source.chance(0.15) else ""
    if kind.type != "option":
        return Field(name, kind, kind.type, known)
    options = dict.fromkeys(source.word(words.OPTIONS) for _ in range(source.rng.randint(2, 4)))
    return Field(name, kind, tuple(options), known)


def new_value(source: Source, field: Field) -> Scalar:
    """A value that the field allows."""
    return source.pick(field.type) if isinstance(field.type, tuple) else field.kind.draw(source)
