"""Tools from the three shapes in which data sets write them, and back into the same shape.

Separate because inference writes tools in the shape of the training rows, which need not be the shape they came in.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data.conversation import Shape, Tool
from data.lenient_json import check_value, load_json, read_values, shorten

JSON_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
# Names that data sets use for JSON schema's types: Python's, and those of the Berkeley leaderboard.
TYPE_NAMES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "list": "array",
    "str": "string",
    "int": "integer",
    "bool": "boolean",
}
PARAMETER_KEYS = ("parameters", "input_schema", "inputSchema")
_DECORATION = ("description", "title", "default", "examples")
_OBJECT_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "description",
    "title",
    "$schema",
}


def read_tools(value: Any) -> tuple[Tool, ...]:
    """Read a list of tools; a JSON string, a single tool and None (no tools) are accepted too.

    Raises:
        ValueError: all broken tools in one message.
    """
    if isinstance(value, str):
        value = _load_list(value)
    if value is None:
        return ()
    tools, problems = [], []
    for number, item in enumerate(value if isinstance(value, list | tuple) else [value], start=1):
        try:
            tools.append(read_tool(item))
        except ValueError as error:
            problems.append(f"tool {number}: {error}")
    names = [tool.name for tool in tools]
    problems += [
        f"tool {name!r}: expected one definition, got several"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(tools)


def _load_list(text: str) -> Any:
    """Load a list of tools from a string; `read_values` also takes Python literals and one object after the other."""
    if not text.strip() or text.strip() == "null":
        return None
    values, _ = read_values(text)
    return values[0] if len(values) == 1 else values


def read_tool(value: Any) -> Tool:
    """Read one tool in any of the three shapes.

    Raises:
        ValueError: what was expected and what came.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object with name and parameters, got {shorten(repr(value))}")
    check_value(dict(value))
    shape: Shape = "function"
    spec, outer = value, {}
    if isinstance(value.get("function"), Mapping):
        shape, spec = "openai", value["function"]
        outer = {
            key: item
            for key, item in value.items()
            if key not in ("type", "function") and item is not None
        }
    name, description = spec.get("name"), spec.get("description")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a name, got {shorten(repr(name))} in {shorten(repr(value))}")
    if not isinstance(description, str | None):
        raise ValueError(
            f"{name}: expected a description in words, got {shorten(repr(description))}"
        )
    # Anthropic's API names the schema input_schema, MCP inputSchema; written back as parameters
    key = next((key for key in PARAMETER_KEYS if spec.get(key) is not None), "parameters")
    parameters, is_compact = _read_parameters(name, spec.get(key))
    if is_compact and shape == "function":
        shape = "compact"
    known = ("name", "description", *PARAMETER_KEYS)
    extras = {key: item for key, item in spec.items() if key not in known and item is not None}
    return Tool(name, description or "", parameters, shape, extras, outer)


def _read_parameters(name: str, value: Any) -> tuple[dict[str, Any], bool]:
    """Return the JSON schema of a tool's parameters, and whether they came in the compact form."""
    if isinstance(value, str):
        value = load_json(value) if value.strip() else None
    if not value:
        return {"type": "object", "properties": {}}, False
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected parameters as an object, got {shorten(repr(value))}")
    is_object = value.get("type") in ("object", "dict") and set(value) <= _OBJECT_KEYWORDS
    if is_object or isinstance(value.get("properties"), Mapping):
        return _read_schema(name, value), False
    properties = {argument: _read_compact(name, argument, word) for argument, word in value.items()}
    optional = {argument for argument, word in value.items() if _is_optional(word)}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [argument for argument in properties if argument not in optional]:
        schema["required"] = required
    return schema, True


def _read_schema(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Check the outermost level of a schema; deeper levels are only passed on."""
    if not isinstance(value.get("properties") or {}, Mapping):
        got = shorten(repr(value["properties"]))
        raise ValueError(f"{name}: expected properties as an object of schemas by name, got {got}")
    schema = {"type": "object", "properties": {}, **_normalise(value)}
    required = schema.get("required", [])
    if not isinstance(required, list | tuple) or not all(
        isinstance(argument, str) for argument in required
    ):
        raise ValueError(
            f"{name}: expected required as a list of names, got {shorten(repr(required))}"
        )
    for argument, item in schema["properties"].items():
        if not isinstance(item, Mapping):
            raise ValueError(
                f"{name}: parameter {argument!r}: expected a schema, got {shorten(repr(item))}"
            )
    return schema


def _is_optional(word: Any) -> bool:
    if isinstance(word, Mapping):
        return "default" in word or bool(word.get("optional"))
    return isinstance(word, str) and word.endswith("?")


def _read_compact(name: str, argument: str, word: Any) -> dict[str, Any]:
    """Read one compact parameter: a type, a list of allowed values, or a schema."""
    if isinstance(word, Mapping):
        return _normalise(word)
    if isinstance(word, list | tuple) and word:
        is_text = all(isinstance(item, str) for item in word)
        return {"type": "string", "enum": list(word)} if is_text else {"enum": list(word)}
    kind = word.removesuffix("?") if isinstance(word, str) else ""
    kind = TYPE_NAMES.get(kind, kind)
    if kind not in JSON_TYPES:
        raise ValueError(
            f"{name}: parameter {argument!r}: expected one of {', '.join(JSON_TYPES)}, a list of allowed values or a "
            f"schema, got {shorten(repr(word))}"
        )
    return {"type": kind}


def _normalise(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give a schema the type names of JSON schema, recursing only through keywords: parameters may be NAMED type."""
    result = dict(schema)
    if isinstance(result.get("type"), str):
        result["type"] = TYPE_NAMES.get(result["type"], result["type"])
    if isinstance(result.get("properties"), Mapping):
        # Parquet fills the keys of other rows in with nulls, which are no schemas
        result["properties"] = {
            key: _normalise(item) if isinstance(item, Mapping) else item
            for key, item in result["properties"].items()
            if item is not None
        }
    if isinstance(result.get("items"), Mapping):
        result["items"] = _normalise(result["items"])
    return {
        key: item for key, item in result.items() if item is not None or key in ("default", "const")
    }


def write_tool(tool: Tool) -> dict[str, Any]:
    """Write a tool in its own shape, as the object that stands in the prompt."""
    spec: dict[str, Any] = {"name": tool.name}
    if tool.description:
        spec["description"] = tool.description
    spec["parameters"] = _write_compact(tool) if tool.shape == "compact" else dict(tool.parameters)
    spec.update(tool.extras)
    return {"type": "function", "function": spec, **tool.outer} if tool.shape == "openai" else spec


def _write_compact(tool: Tool) -> dict[str, Any]:
    """Write parameters as {argument: word}; a schema that no word can say stays a schema."""
    words: dict[str, Any] = {}
    for argument, schema in tool.parameters.get("properties", {}).items():
        is_required = argument in tool.required
        if set(schema) == {"type"} and schema["type"] in JSON_TYPES:
            words[argument] = schema["type"] + ("" if is_required else "?")
        elif is_required and _is_plain_enum(schema):
            words[argument] = schema["enum"]
        else:
            words[argument] = (
                schema if is_required or _is_optional(schema) else {**schema, "optional": True}
            )
    return words


def _is_plain_enum(schema: Mapping[str, Any]) -> bool:
    """True if the list of allowed values alone says what the schema says."""
    values = schema.get("enum")
    if not values:
        return False
    is_text = all(isinstance(item, str) for item in values)
    return (
        set(schema) == ({"type", "enum"} if is_text else {"enum"})
        and schema.get("type", "string") == "string"
    )


def as_shape(tool: Tool, shape: Shape) -> Tool:
    """Return the tool in another shape; going to "compact" drops what its words cannot say, such as descriptions."""
    if tool.shape == shape:
        return tool
    parameters = dict(tool.parameters)
    if shape == "compact":
        properties = parameters.get("properties", {})
        parameters["properties"] = {
            argument: {key: item for key, item in schema.items() if key not in _DECORATION}
            for argument, schema in properties.items()
        }
    return dataclasses.replace(tool, parameters=parameters, shape=shape, outer={})


def as_tools(tools: Sequence[Tool | Mapping[str, Any]], shape: Shape) -> tuple[Tool, ...]:
    """Read what is not yet a Tool, and give every tool the same shape."""
    return tuple(
        as_shape(tool if isinstance(tool, Tool) else read_tool(tool), shape) for tool in tools
    )
