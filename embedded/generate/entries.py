"""Entries (a name, a description, fields) and the requests that one of them fits.

An entry stands for anything with named blanks: a form, a recipe card, a job description, and in `calls.py` a tool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedded.generate import lists, phrases, words
from embedded.generate.domains import DOMAINS, Domain
from embedded.generate.everyday import ITEMS, LISTS
from embedded.generate.mentions import field_phrases
from embedded.generate.natural import natural_core
from embedded.generate.values import KINDS, Field, Scalar, Source, new_field, new_value

# What a description may add; {w} is another thing.
TAILS = ("",) * 6 + lists.entries("phrases", "tails")


@dataclass(frozen=True)
class Entry:
    """`verb` and `noun` are the words of the description that a request may repeat; `idioms` need not."""

    name: str
    verb: str
    noun: str
    tail: str
    fields: tuple[Field, ...]
    domain: Domain
    idioms: tuple[str, ...] = ()

    @property
    def action(self) -> str:
        return f"{self.verb} {self.noun}{self.tail}"

    @property
    def wish(self) -> str:
        """What a request that names the verb asks for, in short."""
        return f"{self.verb} {self.bare_noun}"

    @property
    def bare_noun(self) -> str:
        return self.noun.removeprefix("a ").removeprefix("the ").removeprefix("an ")


@dataclass(frozen=True)
class Request:
    """What the user says, what is wanted in a word or two, and the values of the entry's fields but for a missing one."""

    entry: Entry
    text: str
    wish: str
    values: dict[str, Scalar]
    missing: str | None = None


def new_fields(
    source: Source, count: int, kinds: tuple[str, ...], others: Sequence[Field] = ()
) -> tuple[Field, ...]:
    """`count` fields with different names, mostly of these kinds, at most one of them a flag, no enum option shared.

    Some are among `others`, the fields of the entries beside this one.
    """
    fields: dict[str, Field] = {}
    options: set[str] = set()
    while len(fields) < count:
        # A stream that shares nothing draws nothing here, so that its rows stay as they are.
        if others and source.shared and source.chance(source.shared):
            field = source.pick(others)
        else:
            field = new_field(source, source.pick(kinds) if source.chance(0.75) else None)
        if field.kind is KINDS["flag"]:
            if any(f.kind is KINDS["flag"] for f in fields.values()):
                continue
            name = source.word(words.FLAGS)
            field = Field(name, field.kind, "boolean", True)
        if isinstance(field.type, tuple):
            if len(field.type) < 2 or options & set(field.type):
                continue
            options |= set(field.type)
        if field.name not in fields:
            fields[field.name] = field
    return tuple(fields.values())


def article(word: str, noun: str) -> str:
    """`word` and `noun`, with "an" for "a" before a vowel."""
    return ("an " if word == "a " and noun[:1] in "aeio" else word) + noun


def everyday_entry(source: Source) -> Entry:
    """A tool of daily life, now and then under a name that says nothing."""
    item = source.pick(ITEMS)
    name = source.invent() if source.chance(0.2 * source.made_up) else source.pick(item.names)
    fields = item.new_fields(source)
    return Entry(
        name,
        item.verb,
        item.noun,
        source.pick(item.tails),
        fields,
        source.pick(DOMAINS),
        item.idioms,
    )


def new_entry(source: Source, near: Entry | None = None, beside: Sequence[Entry] = ()) -> Entry:
    """A random entry for a list that holds those `beside` it.

    With `near`, one that shares its verb or its noun and so is easily mistaken for it.
    """
    if near is None and source.chance(source.everyday):
        return everyday_entry(source)
    domain = near.domain if near else source.pick(DOMAINS)
    verb, bare = source.word(domain.verbs, words.VERBS), source.word(domain.nouns, words.NOUNS)
    if source.chance(0.2):
        bare = f"{source.word(words.ADJECTIVES)} {bare}"
    if near is not None:
        # An idiom may name no verb: its noun must be nobody else's.
        same_verb = near.idioms or source.chance(0.5)
        verb, bare = (near.verb.replace(" ", "_"), bare) if same_verb else (verb, near.bare_noun)
    in_name = verb
    if near is None and source.natural and source.chance(0.3 * source.natural):
        verb = source.pick(source.known(words.PHRASAL))
        in_name = (
            verb.removesuffix("_for") if source.chance(0.5) else verb
        )  # "search_flights", to search for flights
    bare = bare.replace("_", " ")
    style = source.rng.random()
    name = f"{in_name}_{bare}".replace(" ", "_")
    if style < 0.34 * source.made_up:
        name = source.invent() + (f"_{source.invent()}" if source.chance(0.5) else "")
    elif style < 0.2:
        name = f"{in_name}_{bare.split()[-1]}"
    elif style < 0.25:
        name = f"{bare}_{in_name}".replace(" ", "_")
    elif style < 0.29:
        name = bare.replace(" ", "_")
    tail = source.pick(TAILS)
    if "{w}" in tail:
        whose = article(source.pick(("a ", "the ")), source.word(words.NOUNS).replace("_", " "))
        tail = tail.format(w=whose)
    noun = article(source.pick(("a ", "a ", "the ", "")), bare)
    others = [field for entry in beside for field in entry.fields]
    fields = new_fields(source, source.pick((1, 1, 2, 2, 2, 3, 3)), domain.kinds, others)
    return Entry(name, verb.replace("_", " "), noun, tail, fields, domain)


def new_entries(source: Source, count: int) -> list[Entry]:
    """`count` entries with different names, verbs and nouns; about half of the lists hold near misses."""
    entries = [new_entry(source)]
    while len(entries) < count:
        near = source.pick(entries) if source.chance(0.35) else None
        entry = new_entry(source, near, entries)
        if all(
            entry.name != e.name and (entry.verb, entry.bare_noun) != (e.verb, e.bare_noun)
            for e in entries
        ):
            entries.append(entry)
    source.rng.shuffle(entries)
    return entries


# Kinds of which an everyday tool takes the first and the last.
RANGES = (LISTS["iso"], KINDS["count"])
# Share of requests for an everyday tool that use an idiom.
IDIOM = 0.8
QUESTIONS = frozenset(lists.entries("phrases", "question words"))


def _action_text(source: Source, entry: Entry, others: Sequence[Entry]) -> tuple[str, str]:
    """The words for what is wanted, mostly the description's own, and the same in short: verb and noun, or the noun."""
    heads = [e.bare_noun.split()[-1] for e in others if e is not entry]
    if entry.bare_noun.split()[-1] not in heads and source.chance(
        source.verbless
    ):  # the noun tells the entry
        return source.wording(phrases.NOUN_OPENERS).format(n=entry.bare_noun), entry.bare_noun
    words_ = ("a ", "the ", "my ", "this ", "our ")
    noun = entry.noun if source.chance(0.6) else article(source.pick(words_), entry.bare_noun)
    action = f"{entry.verb} {noun}{entry.tail if source.chance(0.5) else ''}"
    return source.wording(phrases.OPENERS).format(a=action), entry.wish


def new_values(source: Source, entry: Entry) -> dict[str, Scalar]:
    """A value for every field, in the entry's order; no two alike, so that each has one place to go."""
    values: dict[str, Scalar] = {}
    for field in entry.fields:
        value = new_value(source, field)
        while not isinstance(value, bool) and value in values.values():
            value = new_value(source, field)
        values[field.name] = value
    if (
        entry.idioms
        and len({field.kind for field in entry.fields}) == 1
        and entry.fields[0].kind in RANGES
    ):
        return dict(
            zip(values, sorted(values.values(), key=lambda v: (type(v).__name__, v)), strict=True)
        )
    return values


def core_request(
    source: Source, entry: Entry, values: dict[str, Scalar], others: Sequence[Entry]
) -> tuple[str, str]:
    """Action and values in one clause, without greeting or full stop, and the wish; `others` are the entries on offer."""
    if source.natural and not entry.idioms and source.chance(source.natural):
        text = natural_core(source, entry.verb, entry.bare_noun, entry.tail, entry.fields, values)
        return text, entry.wish
    if entry.idioms and len(values) == len(entry.fields) and source.chance(IDIOM):
        return source.template(entry.idioms).format(*values.values()), entry.wish
    spoken = field_phrases(source, entry.fields, values)
    action, wish = _action_text(source, entry, others)
    if not spoken:
        return action, wish
    joint = source.pick(phrases.JOINTS)  # marks of the language, the same on both sides
    if source.blur and joint == " ":
        joint = ", "  # with unknown words around, only a mark tells where one value's phrase ends
    if source.chance(0.88):
        return action + source.pick((" ", " ", ", ", ": ")) + joint.join(spoken), wish
    # Never a value as the first word: a capital would change it.
    return source.wording(phrases.LEADS) + joint.join(spoken) + ", " + action, wish


def sentence(text: str) -> str:
    """Begins with a capital where the first letter stands alone as a piece anyway."""
    return text[:1].upper() + text[1:] if text[:1].isalpha() else text


def finish(source: Source, core: str) -> str:
    """Greeting, closer and full stop around a request."""
    prefix, closer = source.wording(phrases.PREFIXES), source.wording(phrases.CLOSERS)
    text = prefix + core + ("," + closer if closer and source.chance(0.5) else closer)
    text = text if source.chance(0.25) else sentence(text)
    if core.split()[0] in QUESTIONS:
        return text + source.pick(("?", "?", "?", "", "."))
    return text + source.pick(
        (".", ".", "", "?" if " you " in text[:24] or "what" in text[:24].lower() else ".")
    )


def new_request(
    source: Source, entry: Entry, others: Sequence[Entry], lacking: bool = False
) -> Request:
    """A request that `entry` fits among `others`; with `lacking`, one that leaves out one of its fields."""
    values = new_values(source, entry)
    missing = None
    if lacking:
        missing = source.pick([f.name for f in entry.fields])
        values = {name: value for name, value in values.items() if name != missing}
    core, wish = core_request(source, entry, values, others)
    return Request(entry, finish(source, core), wish, values, missing)


def new_double(
    source: Source, first: Entry, second: Entry, others: Sequence[Entry]
) -> tuple[Request, Request]:
    """Two requests in one message, which both of them carry."""
    values = new_values(source, first), new_values(source, second)
    (core, wish), (core_2, wish_2) = (
        core_request(source, e, v, others) for e, v in zip((first, second), values, strict=True)
    )
    text = finish(source, source.wording(phrases.LINKS).format(x=core, y=core_2))
    return Request(first, text, wish, values[0]), Request(second, text, wish_2, values[1])


def schema(entry: Entry) -> dict[str, Any]:
    """Field names with their types, as they stand in a JSON list of entries."""
    return {f.name: list(f.type) if isinstance(f.type, tuple) else f.type for f in entry.fields}
