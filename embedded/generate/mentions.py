"""How a request mentions the value of a field: by the field's name, by a preposition, or bare."""

from collections.abc import Sequence

from embedded.generate import phrases
from embedded.generate.values import KINDS, Field, Scalar, Source

# Kinds whose values and prepositions look alike: of two in one request, one is named.
ALIKE = (KINDS["text"], KINDS["subject"], KINDS["product"])


def can_stand_bare(field: Field, bare: list[Field], lacking: bool) -> bool:
    """True where a request may leave out the field's name and still have one reading.

    `bare` are the fields that already do without; `lacking`: the request leaves a field out.
    """
    if isinstance(field.type, tuple):
        return True  # no option belongs to two fields of an entry
    if field.type != "string":
        # One number beside strings is placed by its type, unless it could be that of a missing
        # field.
        return not lacking and not any(f.type in ("integer", "number") for f in bare)
    rivals = [f for f in bare if f.type == "string"]
    if not rivals and not lacking:
        return True
    # Several strings are placed by their kinds, which the fields' names must show.
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
            # Among several fields the preposition may be the only difference: no blurring then.
            text = (source.wording if len(fields) == 1 else source.template)(field.kind.phrases)
            bare.append(field)
        else:
            text = source.wording(phrases.LABELLED)
        mentions.append(text.format(v=value, f=field.spoken))
    return mentions
