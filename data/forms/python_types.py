"""Python's type notation (`List[int]`, `int, optional`) as JSON schemas.

Separate because xLAM and its relatives describe every argument this way.
"""

import re
from typing import Any

_NAMES = {
    **{"str": "string", "string": "string", "int": "integer", "integer": "integer"},
    **{"float": "number", "number": "number", "bool": "boolean", "boolean": "boolean"},
    **{"list": "array", "array": "array", "tuple": "array", "set": "array", "sequence": "array"},
    **{"iterable": "array", "dict": "object", "object": "object", "mapping": "object"},
    **{"none": "null", "nonetype": "null"},
}
_GENERIC = re.compile(r"(?:typing\.)?(\w+)\s*\[(.*)\]", re.DOTALL)


def read_type(text: str) -> tuple[dict[str, Any], bool]:
    """Return the schema of a type's notation, and whether the argument may be left out.

    A name that is no type of JSON (`Any`, `Callable`, `datetime`) gives the schema of any value.
    """
    parts = _split(text, ",")
    words = [part.strip().lower() for part in parts[1:]]
    is_optional = any(word == "optional" or word.startswith("default") for word in words)
    schema = _schema(parts[0].strip())
    # Optional[int] says that null is a value, and in these data sets also that it may be absent
    return schema, is_optional or parts[0].strip().startswith(("Optional[", "typing.Optional["))


def _schema(text: str) -> dict[str, Any]:
    """Return the schema of one type without words behind it."""
    # Before brackets are matched: list[int] | dict[str, int] begins and ends like one generic
    options = _split(text, "|")
    if len(options) > 1:
        return _any_of(options)
    match = _GENERIC.fullmatch(text.strip())
    if match is None:
        name = _NAMES.get(text.strip().lower())
        return {"type": name} if name else {}
    name, inner = match[1].lower(), _split(match[2], ",")
    if name in ("union", "optional"):
        return _any_of(inner + (["None"] if name == "optional" else []))
    if name == "literal":
        return {"enum": [part.strip().strip("'\"") for part in inner]}
    kind = _NAMES.get(name)
    if kind == "array":
        # A tuple's items may differ; where they do not, one schema says it all
        items = [_schema(part) for part in inner if part.strip() != "..."]
        is_alike = items and items[0] and all(item == items[0] for item in items)
        return {"type": "array", "items": items[0]} if is_alike else {"type": "array"}
    # The first of a dict's two types says nothing: every key of a JSON object is a text
    if kind == "object" and len(inner) == 2 and _schema(inner[1]):
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    return {"type": kind} if kind else {}


def _any_of(options: list[str]) -> dict[str, Any]:
    """Return the schema of several types: a list of names where each is a plain one."""
    schemas = [_schema(option) for option in options]
    if not all(schemas):
        return {}  # one of them is any value
    if all(set(schema) == {"type"} for schema in schemas):
        names = list(dict.fromkeys(schema["type"] for schema in schemas))
        return {"type": names[0] if len(names) == 1 else names}
    return {"anyOf": schemas}


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
