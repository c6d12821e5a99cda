"""Entries (a name, a description, fields) and the requests that one of them fits.

An entry is anything with named blanks: a form, a recipe card, a job description, in `calls.py` a
tool.
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
    """Requests repeat the description's `verb` and `noun`, or use an idiom, which need not."""

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
        """The noun without its article."""
        return self.noun.removeprefix("a ").removeprefix("the ").removeprefix("an ")

    def resembles(self, other: "Entry") -> bool:
        """True where a request for one could be a request for the other."""
        same_words = (self.verb, self.bare_noun) == (other.verb, other.bare_noun)
        return self.name == other.name or same_words


@dataclass(frozen=True)
class Request:
    """What the user says, the wish in a word or two, and the values of the fields that it gives."""

    entry: Entry
    text: str
    wish: str
    values: dict[str, Scalar]
    missing: str | None = None


def new_fields(
    source: Source, count: int, kinds: tuple[str, ...], others: Sequence[Field] = ()
) -> tuple[Field, ...]:
    """`count` fields with different names, mostly of these kinds.

    At most one is a flag and no option belongs to two, so that a request has one reading. Some are
    taken from `others`, the fields of the entries beside this one.
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
    tail, domain = source.pick(item.tails), source.pick(DOMAINS)
    return Entry(name, item.verb, item.noun, tail, fields, domain, item.idioms)


def _entry_name(source: Source, verb: str, noun: str) -> str:
    """Mostly verb_noun, sometimes shorter or turned round, sometimes a name that says nothing."""
    style = source.rng.random()
    if style < 0.34 * source.made_up:
        return source.invent() + (f"_{source.invent()}" if source.chance(0.5) else "")
    if style < 0.2:
        return f"{verb}_{noun.split()[-1]}"
    if style < 0.25:
        return f"{noun}_{verb}".replace(" ", "_")
    if style < 0.29:
        return noun.replace(" ", "_")
    return f"{verb}_{noun}".replace(" ", "_")


def new_entry(source: Source, near: Entry | None = None, beside: Sequence[Entry] = ()) -> Entry:
    """A random entry for a list with those `beside` it.

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
        # A tool that searches for flights may be called "search_flights".
        in_name = verb.removesuffix("_for") if source.chance(0.5) else verb
    bare = bare.replace("_", " ")
    name = _entry_name(source, in_name, bare)
    tail = source.pick(TAILS)
    if "{w}" in tail:
        whose = article(source.pick(("a ", "the ")), source.word(words.NOUNS).replace("_", " "))
        tail = tail.format(w=whose)
    noun = article(source.pick(("a ", "a ", "the ", "")), bare)
    others = [field for entry in beside for field in entry.fields]
    fields = new_fields(source, source.pick((1, 1, 2, 2, 2, 3, 3)), domain.kinds, others)
    return Entry(name, verb.replace("_", " "), noun, tail, fields, domain)


def new_entries(source: Source, count: int) -> list[Entry]:
    """`count` entries, no two alike; about half of the lists have near misses."""
    entries = [new_entry(source)]
    while len(entries) < count:
        near = source.pick(entries) if source.chance(0.35) else None
        entry = new_entry(source, near, entries)
        if not any(entry.resembles(other) for other in entries):
            entries.append(entry)
    source.rng.shuffle(entries)
    return entries


# Kinds of which an everyday tool takes the first and the last.
RANGES = (LISTS["iso"], KINDS["count"])
# Share of requests for an everyday tool that use an idiom.
IDIOM = 0.8
QUESTIONS = frozenset(lists.entries("phrases", "question words"))


def _action_text(source: Source, entry: Entry, others: Sequence[Entry]) -> tuple[str, str]:
    """The words for what is wanted, mostly the description's own, and the wish."""
    heads = [e.bare_noun.split()[-1] for e in others if e is not entry]
    # Where no other entry has this noun, the verb can be left to the reader.
    if entry.bare_noun.split()[-1] not in heads and source.chance(source.verbless):
        return source.wording(phrases.NOUN_OPENERS).format(n=entry.bare_noun), entry.bare_noun
    words_ = ("a ", "the ", "my ", "this ", "our ")
    noun = entry.noun if source.chance(0.6) else article(source.pick(words_), entry.bare_noun)
    action = f"{entry.verb} {noun}{entry.tail if source.chance(0.5) else ''}"
    return source.wording(phrases.OPENERS).format(a=action), entry.wish


def new_values(source: Source, entry: Entry) -> dict[str, Scalar]:
    """A value for every field, in the entry's order; no two alike, so that each has one field."""
    values: dict[str, Scalar] = {}
    for field in entry.fields:
        value = new_value(source, field)
        while not isinstance(value, bool) and value in values.values():
            value = new_value(source, field)
        values[field.name] = value
    kinds = {field.kind for field in entry.fields}
    if entry.idioms and len(kinds) == 1 and entry.fields[0].kind in RANGES:
        # "From 7 to 3" would be no range.
        ordered = sorted(values.values(), key=lambda value: (type(value).__name__, value))
        return dict(zip(values, ordered, strict=True))
    return values


def core_request(
    source: Source, entry: Entry, values: dict[str, Scalar], others: Sequence[Entry]
) -> tuple[str, str]:
    """Action and values in one clause, without greeting or full stop, and the wish.

    `others` are all entries on offer, this one included.
    """
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
        joint = ", "  # among unknown words only a mark shows where the phrase of a value ends
    if source.chance(0.88):
        return action + source.pick((" ", " ", ", ", ": ")) + joint.join(spoken), wish
    # Never a value as the first word: a capital would change it.
    return source.wording(phrases.LEADS) + joint.join(spoken) + ", " + action, wish


def sentence(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:] if text[:1].isalpha() else text


def finish(source: Source, core: str) -> str:
    """Greeting, closer and full stop around a request."""
    prefix, closer = source.wording(phrases.PREFIXES), source.wording(phrases.CLOSERS)
    text = prefix + core + ("," + closer if closer and source.chance(0.5) else closer)
    text = text if source.chance(0.25) else sentence(text)
    if core.split()[0] in QUESTIONS:
        return text + source.pick(("?", "?", "?", "", "."))
    is_question = " you " in text[:24] or "what" in text[:24].lower()
    return text + source.pick((".", ".", "", "?" if is_question else "."))


def new_request(
    source: Source, entry: Entry, others: Sequence[Entry], lacking: bool = False
) -> Request:
    """A request that `entry` fits among `others`; with `lacking`, one of its fields is left out."""
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
    core, wish = core_request(source, first, values[0], others)
    core_2, wish_2 = core_request(source, second, values[1], others)
    text = finish(source, source.wording(phrases.LINKS).format(x=core, y=core_2))
    return Request(first, text, wish, values[0]), Request(second, text, wish_2, values[1])


def schema(entry: Entry) -> dict[str, Any]:
    """Field names with their types, as a JSON list of entries shows them."""
    return {f.name: list(f.type) if isinstance(f.type, tuple) else f.type for f in entry.fields}
