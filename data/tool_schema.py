"""Tools written back in the three shapes of data sets, and brought from one shape to another.

Separate from `tool_calls.py`, which reads tools: inference writes them in the shape of the training
rows, which need not be the shape in which they came.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from data.conversation import Shape, Tool

# Not a set: a schema's type may be a list, and asking a set for one raises TypeError
JSON_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
DECORATION = ("description", "title", "default", "examples")


def write_tool(tool: Tool) -> dict[str, Any]:
    """Write a tool in its own shape, as the object that the prompt shows."""
    spec: dict[str, Any] = {"name": tool.name}
    if tool.description:
        spec["description"] = tool.description
    spec["parameters"] = _write_compact(tool) if tool.shape == "compact" else dict(tool.parameters)
    spec.update(tool.extras)
    return {"type": "function", "function": spec, **tool.outer} if tool.shape == "openai" else spec


def _write_compact(tool: Tool) -> dict[str, Any]:
    """Write parameters as {argument: word}; a schema that no word can express stays a schema."""
    words: dict[str, Any] = {}
    for argument, schema in tool.parameters.get("properties", {}).items():
        is_required = argument in tool.required
        if set(schema) == {"type"} and schema["type"] in JSON_TYPES:
            words[argument] = schema["type"] + ("" if is_required else "?")
        elif is_required and _is_plain_enum(schema):
            words[argument] = schema["enum"]
        # A schema with a default is optional by itself; others need the word
        elif is_required or is_optional(schema):
            words[argument] = schema
        else:
            words[argument] = {**schema, "optional": True}
    return words


def _is_plain_enum(schema: Mapping[str, Any]) -> bool:
    """True if the list of allowed values alone says what the schema says."""
    values = schema.get("enum")
    if not values:
        return False
    # A reader gives a list of strings the type "string" back, and any other list no type at all
    is_text = all(isinstance(item, str) for item in values)
    keys = {"type", "enum"} if is_text else {"enum"}
    return set(schema) == keys and schema.get("type", "string") == "string"


def is_optional(word: Any) -> bool:
    """True if a compact parameter may be left out of a call."""
    if isinstance(word, Mapping):
        return "default" in word or bool(word.get("optional"))
    return isinstance(word, str) and word.endswith("?")


def as_shape(tool: Tool, shape: Shape) -> Tool:
    """Return the tool in another shape; "compact" has no words for descriptions and loses them."""
    if tool.shape == shape:
        return tool
    parameters = dict(tool.parameters)
    if shape == "compact":
        # Only of the arguments themselves: deeper levels stay schemas, descriptions and all
        properties = parameters.get("properties", {})
        parameters["properties"] = {
            argument: {key: item for key, item in schema.items() if key not in DECORATION}
            for argument, schema in properties.items()
        }
    return dataclasses.replace(tool, parameters=parameters, shape=shape, outer={})


def as_tools(tools: Iterable[Tool], shape: Shape) -> tuple[Tool, ...]:
    """Return all tools in one shape, as a prompt shows them."""
    return tuple(as_shape(tool, shape) for tool in tools)
