"""Requests as people type them: "Order a large pizza to 12 Mill Street", "Cancel my order KX-4471".

The templates of `phrases.py` keep action and values apart. Here an option comes before the noun, a
name or a number right after it, and a preposition belongs to its kind of value. Only pretraining
streams have these requests; no held-out row does.
"""

from collections.abc import Sequence

from embedded.generate.lists import entries, table
from embedded.generate.mentions import can_stand_bare
from embedded.generate.values import KINDS, Field, Scalar, Source

OPENERS = ("",) * 8 + entries("natural", "openers")
DETERMINERS = ("a ", "a ", "the ", "the ", "my ", "our ", "")
# By kind: the words around a value; {f} is the field's name.
PLAIN = {name: tuple(line.split(" | ")) for name, line in table("natural", "plain").items()}
# Names that give a direction, which the preposition must not contradict.
DIRECTIONS = {
    phrase: frozenset(names.split()) for phrase, names in table("natural", "directions").items()
}
# By identity: a `Kind` holds functions and tuples of templates, and is slow to hash.
BY_KIND = {id(kind): PLAIN[name] for name, kind in KINDS.items() if name in PLAIN}
NAMED = entries("natural", "named")
FLAGS = {True: entries("natural", "yes"), False: entries("natural", "no")}
# Kinds that may follow the noun directly, as in "my order KX-4471", and words without a
# preposition.
APPOSED = tuple(KINDS[name] for name in ("code", "person", "text", "product", "subject"))
WHEN = ("today", "tomorrow", "tonight")


def natural_core(
    source: Source,
    verb: str,
    noun: str,
    tail: str,
    fields: Sequence[Field],
    values: dict[str, Scalar],
) -> str:
    """One clause for an action and the given values, without greeting or full stop."""
    first, _, particle = verb.partition(" ")
    lacking = len(values) < len(fields)
    given = [field for field in source.rng.sample(fields, len(fields)) if field.name in values]
    thing, left, bare = _thing(source, noun, given, values, lacking)
    if particle not in ("", "for") and source.chance(0.5):
        action = f"{first} {thing} {particle}"  # "turn the light on" for "turn on the light"
    else:
        action = f"{verb} {thing}"
    text = source.pick(OPENERS) + action + (tail if len(values) < 3 and source.chance(0.3) else "")
    phrases = [_mention(source, field, values[field.name], bare, lacking) for field in left]
    # Phrases that start a sentence of their own come last; sorted() keeps the order of the others.
    for phrase in sorted(phrases, key=lambda p: p.startswith(".")):
        text += phrase if phrase[0] in ",." else f" {phrase}"
    return text


def _thing(
    source: Source, noun: str, fields: list[Field], values: dict[str, Scalar], lacking: bool
) -> tuple[str, list[Field], list[Field]]:
    """The noun with an option before it or a value after it; the other fields; the used ones."""
    bare: list[Field] = []
    option = next((f for f in fields if isinstance(f.type, tuple)), None)
    apposed = next((f for f in fields if f.kind in APPOSED and f.type == "string"), None)
    determiner = source.pick(DETERMINERS)
    thing = noun
    if option and source.chance(0.6):
        thing = f"{values[option.name]} {thing}"
        bare.append(option)
    if apposed and can_stand_bare(apposed, bare, lacking) and source.chance(0.4):
        thing = f"{thing} {values[apposed.name]}"
        bare.append(apposed)
        determiner = source.pick(("", "the ", "my ", "our "))  # "an order KX-4471" names no order
    if determiner == "a " and thing[:1].lower() in "aeio":
        determiner = "an "
    return determiner + thing, [f for f in fields if f not in bare], bare


def _mention(source: Source, field: Field, value: Scalar, bare: list[Field], lacking: bool) -> str:
    if isinstance(value, bool):
        return source.pick(FLAGS[value]).format(f=field.spoken)
    if not can_stand_bare(field, bare, lacking) or source.chance(0.2):
        return source.pick(NAMED).format(f=field.spoken, v=value)
    bare.append(field)
    if value in WHEN:
        return str(value)
    directed = [phrase for phrase, names in DIRECTIONS.items() if field.name in names]
    plain = directed or BY_KIND.get(id(field.kind))
    # A kind of the everyday tools has no entry there.
    phrase = source.pick(plain) if plain else source.template(field.kind.phrases)
    assert phrase is not None  # `templates` leaves out the None
    return phrase.format(f=field.spoken, v=value)
