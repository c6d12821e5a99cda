"""How a request mentions the values of an entry's fields: by the field's name, by a preposition, or bare."""

from collections.abc import Sequence

from embedded.generate import phrases
from embedded.generate.values import KINDS, Field, Scalar, Source

# Kinds whose values and prepositions look alike: side by side, one of them is named.
ALIKE = (KINDS["text"], KINDS["subject"], KINDS["product"])


def can_stand_bare(field: Field, bare: list[Field], lacking: bool) -> bool:
    """True where the request may give the value without the field's name and still have one reading.

    `bare` are the fields that already do without. One string and one number are told apart by type and by elimination;
    elimination needs every other value to be there; more than one string needs names that tell the kind.
    """
    if isinstance(field.type, tuple):
        return True
    if field.type != "string":
        return not lacking and not any(f.type in ("integer", "number") for f in bare)
    rivals = [f for f in bare if f.type == "string"]
    if not rivals and not lacking:
        return True
    if not field.known or not all(f.known for f in rivals):
        return False
    return all(
        f.kind is not field.kind and not (f.kind in ALIKE and field.kind in ALIKE) for f in rivals
    )


def field_phrases(source: Source, fields: Sequence[Field], values: dict[str, Scalar]) -> list[str]:
    """How the request mentions each value, in random order."""
    mentions: list[str] = []
    bare: list[Field] = []
    for field in source.rng.sample(fields, len(fields)):
        if field.name not in values:
            continue
        value = values[field.name]
        if isinstance(value, bool):
            text = source.template(phrases.YES if value else phrases.NO)
        elif can_stand_bare(field, bare, len(values) < len(fields)) and source.chance(0.6):
            # Among several fields a preposition may be all that tells them apart: it must stay.
            text = (source.wording if len(fields) == 1 else source.template)(field.kind.phrases)
            bare.append(field)
        else:
            text = source.wording(phrases.LABELLED)
        mentions.append(text.format(v=value, f=field.spoken))
    return mentions
