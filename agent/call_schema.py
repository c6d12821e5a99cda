"""The schemas of tools as a grammar of calls: no value that it lets through is refused later.

Separate from `agent/constrain.py`, which follows the grammar id by id. What "valid" needs besides
the tool's own schema: numbers that are finite and short, a bound on free values, keys in objects
that are known. Source of the grammar's language: llguidance's documentation of Lark and JSON
schema.
"""

import json
from typing import Any

from agent.limits import MAX_CALLS
from data.call_check import PYTHON_TYPES, check_argument
from data.wire import WireFormat

# A number has to be finite, and of at most 64 digits (`data/lenient_json.py`).
LARGEST = 10**15
FREE_DEPTH = 3  # levels of a value of which the schema says nothing
# As `data/wire.py` writes calls
SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
KEPT = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("minItems", "maxItems"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def bounded(schema: Any, depth: int = 0, *, plain: bool = False) -> dict[str, Any]:
    """A tool's schema as one of which every value passes `check_argument` and can be read.

    plain: without patterns and other keywords that a grammar may not have.
    """
    schema = schema if isinstance(schema, dict) else {}
    options = schema.get("anyOf") or schema.get("oneOf")
    if depth > 16 or not schema:
        return free_value(FREE_DEPTH)
    if isinstance(options, list) and options:
        return {"anyOf": [bounded(option, depth + 1, plain=plain) for option in options]}
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    kinds = [kind for kind in kinds if kind in PYTHON_TYPES]
    if schema.get("nullable") is True and kinds:
        kinds.append("null")
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        # A foreign enum may list values of another type, and a call with one would be refused later
        fitting = [value for value in schema["enum"] if not check_argument(schema, value, "")]
        return {"enum": fitting or schema["enum"]}
    if not kinds:
        return free_value(FREE_DEPTH)
    found = [_of_kind(kind, schema, depth, plain) for kind in dict.fromkeys(kinds)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _of_kind(kind: str, schema: dict[str, Any], depth: int, plain: bool) -> dict[str, Any]:
    kept = {} if plain else {key: schema[key] for key in KEPT.get(kind, ()) if key in schema}
    if kind in ("integer", "number"):
        low, high = kept.get("minimum", -LARGEST), kept.get("maximum", LARGEST)
        return {"type": kind, **kept, "minimum": low, "maximum": high}
    if kind == "array":
        items = schema.get("items")
        return {"type": kind, "items": bounded(items, depth + 1, plain=plain), **kept}
    if kind != "object":
        return {"type": kind, **kept}
    given = schema.get("properties")
    given = given if isinstance(given, dict) else {}
    properties = {name: bounded(item, depth + 1, plain=plain) for name, item in given.items()}
    others = schema.get("additionalProperties", depth > 0 and not given)
    rest = bounded(others, depth + 1, plain=plain) if others else None
    required = []
    for name in schema.get("required") or ():
        if rest:
            properties.setdefault(name, rest)  # required, although no schema describes it
        required += [name] if name in properties else []
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": rest or False,
    }


def free_value(depth: int) -> dict[str, Any]:
    """Any JSON of at most so many levels."""
    number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    values: list[dict[str, Any]] = [{"type": "string"}, number, {"type": "boolean"}]
    values.append({"type": "null"})
    if depth:
        inner = free_value(depth - 1)
        values.append({"type": "array", "items": inner})
        values.append({"type": "object", "additionalProperties": inner})
    return {"anyOf": values}


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """What `check_arguments` reads of a tool's parameters, as the schema of an object."""
    read = ("properties", "required", "additionalProperties")
    return {"type": "object"} | {key: parameters[key] for key in read if key in parameters}


def grammar(tools: dict[str, dict[str, Any]], wire: WireFormat, *, plain: bool = False) -> str:
    """The grammar of what stands between the tags of a call, or behind the tag of a list.

    tools: the parameters by the name.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": bounded(_arguments(parameters), plain=plain),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, parameters in tools.items()
    ]
    schema = json.dumps({"anyOf": calls, "x-guidance": SPELLING})
    gap = json.dumps(wire.call.gap)
    body = f"{gap} call {gap}" if wire.call.gap else "call"
    if wire.call.close is None:
        # The agent runs no more calls of one reply than these, and answers others with an error
        body = f'"[" call (", " call){{0,{MAX_CALLS - 1}}} "]"'
    return f"start: {body}\ncall: %json {schema}\n"
