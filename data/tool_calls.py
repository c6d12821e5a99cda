"""Tools and calls from the JSON that data sets and models write; a broken call becomes an error.

Separate because rows and a model's replies share it: a row with an error is refused, while the
error of a reply goes back to the model as a result.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data.conversation import Shape, Tool, ToolCall
from data.lenient_json import (
    HINTS,
    LiteralError,
    check_value,
    find_end,
    load_json,
    read_values,
    shorten,
)
from data.tool_schema import JSON_TYPES, as_tools, is_optional

MAX_CALLS = 64  # read out of one block: a model in a loop may write thousands
MAX_TOOLS = 1024  # each call of a row looks its tool up among them
# Names that data sets use for JSON schema's types: Python's, and those of the Berkeley leaderboard.
TYPE_NAMES = {
    **{"dict": "object", "float": "number", "tuple": "array", "list": "array"},
    **{"str": "string", "int": "integer", "bool": "boolean"},
}
# Anthropic's API calls the schema input_schema, MCP inputSchema; both are written back as
# parameters
PARAMETER_KEYS = ("parameters", "input_schema", "inputSchema")
_SCHEMA_KEYS = {"type", "properties", "required", "additionalProperties"}
_SCHEMA_KEYS |= {"description", "title", "$schema"}
# What the keywords that are read hold, where they are there; see `_may_be_null`
_LIST = (list, tuple, type(None))
_KEYWORDS = {"type": (str, *_LIST), "anyOf": _LIST, "enum": _LIST}
# Only a tag in front of a list or an object opens the block: prompts also speak of "<tools></tools>
# XML tags".
_TOOLS_BLOCK = re.compile(r"<tools>\s*(?=\[|\{\s*[\"'])")
_MAX_BLOCKS = 16  # that many beginnings of a block are tried; a prompt has one
BETWEEN_TOOLS = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True)
class CallError:
    """Why a call cannot be run, in words that the model can act on."""

    code: str  # a key of `data.lenient_json.HINTS`
    message: str
    hint: str
    name: str | None = None

    def as_result(self) -> dict[str, dict[str, str]]:
        """What the model reads in place of a result: {"error": {"code", "message", "hint"}}."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


Outcome = ToolCall | CallError


def error_for(code: str, message: str, name: str | None = None) -> CallError:
    """Build the error with the code's standard hint."""
    return CallError(code, message, HINTS[code], name)


def read_calls(body: str, tools: Iterable[Tool] = ()) -> tuple[list[Outcome], list[str]]:
    """Read a call's text, usually one {"name": ..., "arguments": {...}}, into outcomes and repairs.

    The outcomes are calls and errors in their order, the repairs the names of what was mended. A
    call without arguments is an error if its tool is among `tools` and requires some. Never raises.
    """
    try:
        values, repairs = read_values(body)
    except LiteralError as error:
        return [error_for(error.code, str(error))], []
    # Several calls between one pair of tags: objects one after the other, or lists of them
    items: list[Any] = []
    for value in values:
        items += value if isinstance(value, list) else [value]
        repairs += ["list_of_calls"] if isinstance(value, list) else []
    if not items:
        return [error_for("not_an_object", "expected a call, got an empty list")], repairs
    outcomes: list[Outcome] = []
    for item in items[:MAX_CALLS]:
        outcome, repair = _read_call(item, tools)
        outcomes.append(outcome)
        repairs += repair
    # The calls up to the cap are kept; the model is told about the rest
    if len(items) > MAX_CALLS:
        problem = f"expected at most {MAX_CALLS} calls, got {len(items)}"
        outcomes.append(error_for("too_many_calls", problem))
    return outcomes, repairs


def _read_call(value: Any, tools: Iterable[Tool]) -> tuple[Outcome, list[str]]:
    """Read one {"name", "arguments"} object; other keys are dropped."""
    if not isinstance(value, dict):
        return error_for("not_an_object", f"expected a JSON object, got {shorten(repr(value))}"), []
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return error_for("missing_name", f"expected a tool's name, got {shorten(repr(name))}"), []
    if "arguments" not in value and "parameters" in value:
        # A common slip. It is not repaired: the key is the name of the tool's schema, which may
        # have been copied
        problem = 'expected the key "arguments", got "parameters"'
        return error_for("missing_arguments", problem, name), []
    arguments = value.get("arguments")
    try:
        call, repairs = make_call(name, arguments, tools)
    except LiteralError as error:
        return CallError(error.code, str(error), error.hint, name), []
    repairs = (["string_arguments"] if isinstance(arguments, str) else []) + repairs
    return call, repairs + (["extra_keys"] if set(value) - {"name", "arguments"} else [])


def make_call(
    name: str, arguments: Any, tools: Iterable[Tool] = (), id: str | None = None
) -> tuple[ToolCall, list[str]]:
    """Build a call from arguments that are an object, one as a string, or absent; name the repairs.

    Raises: LiteralError for any other arguments, or for none where the tool requires some.
    """
    repairs: list[str] = []
    tool = next((tool for tool in tools if tool.name == name), None)
    if isinstance(arguments, str) and arguments.strip():
        # OpenAI's API gives arguments as a string of JSON, and models copy the habit
        try:
            values, repairs = read_values(arguments)
        except LiteralError as error:
            # The usual hint asks for the whole call, of which only this string is broken
            is_no_json = error.code in ("invalid_json", "not_an_object")
            hint = "Close or correct the JSON of the arguments." if is_no_json else ""
            problem = f"{name}: arguments: {error}"
            raise LiteralError(error.code, problem, hint) from None
        arguments = values[0] if len(values) == 1 else values
    if arguments is None or arguments == "":
        if tool and tool.required:
            problem = f"{name}: expected {', '.join(tool.required)}, got no arguments"
            raise LiteralError("missing_arguments", problem)
        arguments, repairs = {}, [*repairs, "no_arguments"]
    if not isinstance(arguments, dict):
        problem = f"{name}: expected an object, got {shorten(repr(arguments))}"
        raise LiteralError("arguments_not_object", problem)
    given = {}
    for key, value in arguments.items():
        if value is not None or _may_be_null(tool, key):
            given[key] = value
    if len(given) < len(arguments):
        repairs = [*repairs, "stray_null"]
    return ToolCall(name, check_value(given), id), repairs


def _may_be_null(tool: Tool | None, argument: str) -> bool:
    """False for a null that only stands for an argument left out, as Parquet fills them in."""
    if tool is None or argument in tool.required:
        return True  # nothing says that it is stray
    schema = tool.parameters.get("properties", {}).get(argument)
    if schema is None:
        return False
    options = [option for option in schema.get("anyOf", ()) if isinstance(option, Mapping)]
    kinds = [option.get("type") for option in options]
    # JSON schema's type is one name or a list of names
    own = schema.get("type")
    kinds += [own] if isinstance(own, str) else list(own or ())
    return "null" in kinds or None in (schema.get("enum") or ()) or schema.get("nullable") is True


def split_at_tools(text: str) -> tuple[str, tuple[Tool, ...] | None, str]:
    """Cut a Hermes system text into the words before its tools, the tools, and the words after.

    Without a block, the tools are None. Raises: ValueError for a broken block and no whole one.
    """
    problem: ValueError | None = None
    for tag in islice(_TOOLS_BLOCK.finditer(text), _MAX_BLOCKS):
        start = position = tag.end()
        try:
            # The block is one list, or one object after the other
            while text[position : position + 1] in ("[", "{"):
                end = find_end(text, position)
                if end is None:
                    got = shorten(text[position:])
                    raise ValueError(
                        f"expected a complete list of tools, got {got}; close every bracket"
                    )
                gap = BETWEEN_TOOLS.match(text, end)  # it matches the empty string too
                position = gap.end() if gap else end
            if not text.startswith("</tools>", position):
                got = shorten(text[position:]) or "the end"
                raise ValueError(f"expected </tools> after the tools, got {got}; close it")
            tools = read_tools(text[start:position])
        except ValueError as error:
            problem = problem or error  # the first is the likeliest to be meant as a block
        else:
            return text[: tag.start()], tools, text[position + len("</tools>") :]
    if problem:
        raise problem
    return text, None, ""


def read_tools(value: Any) -> tuple[Tool, ...]:
    """Read a list of tools, a JSON string of one, a single tool or None; all in the first's shape.

    Raises: ValueError for all broken tools in one message.
    """
    if isinstance(value, str):
        # `read_values` also takes Python literals and one object after the other
        is_empty = value.strip() in ("", "null")
        values = [None] if is_empty else read_values(value)[0]
        value = values[0] if len(values) == 1 else values
    if value is None:
        return ()
    tools, problems = [], []
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) > MAX_TOOLS:
        raise ValueError(f"expected at most {MAX_TOOLS} tools, got {len(items)}")
    for number, item in enumerate(items, start=1):
        try:
            # When2Call has a list of strings of JSON
            tools.append(read_tool(read_values(item)[0][0] if isinstance(item, str) else item))
        except ValueError as error:
            problems.append(f"tool {number}: {error}")
    for name, count in Counter(tool.name for tool in tools).items():
        if count > 1:
            problems.append(f"tool {shorten(name)}: expected one definition, got several")
    if problems:
        raise ValueError("; ".join(problems))
    # A prompt writes all its tools alike; few rows mix shapes
    is_mixed = any(tool.shape != tools[0].shape for tool in tools)
    return as_tools(tools, tools[0].shape) if is_mixed else tuple(tools)


def read_tool(value: Any) -> Tool:
    """Read one tool in any of the three shapes. Raises: ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object with name and parameters, got {shorten(repr(value))}")
    check_value(dict(value))  # a tool ends up in the prompt, as JSON and as tokens
    # "compact" shows only in the parameters, below
    shape: Shape = "function"
    spec, outer = value, {}
    if isinstance(value.get("function"), Mapping):
        shape, spec = "openai", value["function"]
        outer = {key: item for key, item in value.items() if item is not None}
        outer = {key: item for key, item in outer.items() if key not in ("type", "function")}
    name, description = spec.get("name"), spec.get("description")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a name, got {shorten(repr(name))} in {shorten(repr(value))}")
    if not isinstance(description, str | None):
        got = shorten(repr(description))
        raise ValueError(f"{name}: expected a description in words, got {got}")
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
    # Compact parameters may be NAMED type or title, so the type alone does not make it a schema
    is_object = str(value.get("type")).lower() in ("object", "dict") and set(value) <= _SCHEMA_KEYS
    is_compact = not (is_object or isinstance(value.get("properties"), Mapping))
    if is_compact:
        schema = _read_compact(name, value)
    else:
        schema = {"type": "object", "properties": {}, **_normalise(value)}
    if not isinstance(schema["properties"], Mapping):
        got = shorten(repr(schema["properties"]))
        raise ValueError(f"{name}: expected properties as an object of schemas by name, got {got}")
    required = schema.get("required", [])
    is_list = isinstance(required, list | tuple)
    if not is_list or not all(isinstance(argument, str) for argument in required):
        got = shorten(repr(required))
        raise ValueError(f"{name}: expected required as a list of names, got {got}")
    # Only the outermost level is checked; deeper levels are passed on
    for argument, item in schema["properties"].items():
        if not isinstance(item, Mapping):
            got = shorten(repr(item))
            raise ValueError(f"{name}: parameter {argument!r}: expected a schema, got {got}")
        for key, kinds in _KEYWORDS.items():
            if not isinstance(item.get(key), kinds):
                got = shorten(repr(item[key]))
                place = f"{name}: parameter {argument!r}"
                raise ValueError(f"{place}: expected a list under {key!r}, got {got}")
    return schema, is_compact


def _read_compact(name: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """Read compact parameters, each a type, a list of allowed values, or a schema."""
    properties: dict[str, Any] = {}
    for argument, word in words.items():
        kind = word.removesuffix("?") if isinstance(word, str) else ""
        kind = TYPE_NAMES.get(kind, kind)
        if isinstance(word, Mapping):
            properties[argument] = _normalise(word)
        elif isinstance(word, list | tuple) and word:
            is_text = all(isinstance(item, str) for item in word)
            properties[argument] = {"type": "string"} if is_text else {}
            properties[argument]["enum"] = list(word)
        elif kind in JSON_TYPES:
            properties[argument] = {"type": kind}
        else:
            choices = f"{', '.join(JSON_TYPES)}, a list of allowed values or a schema"
            got = shorten(repr(word))
            raise ValueError(
                f"{name}: parameter {argument!r}: expected one of {choices}, got {got}"
            )
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [argument for argument, word in words.items() if not is_optional(word)]:
        schema["required"] = required
    return schema


def _normalise(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give a schema the type names of JSON schema."""
    # Recursing only through keywords: parameters may be NAMED type
    result = dict(schema)
    if isinstance(result.get("type"), str):
        # Google's APIs write types in capitals
        kind = result["type"].lower()
        result["type"] = TYPE_NAMES.get(kind, kind if kind in JSON_TYPES else result["type"])
    if isinstance(result.get("properties"), Mapping):
        properties = {}
        for key, item in result["properties"].items():
            # Parquet fills the keys of other rows in with nulls, which are no schemas
            if item is not None:
                properties[key] = _normalise(item) if isinstance(item, Mapping) else item
        result["properties"] = properties
    if isinstance(result.get("items"), Mapping):
        result["items"] = _normalise(result["items"])
    # A default or const of null is a value; any other null came from Parquet
    nullable = ("default", "const")
    return {key: item for key, item in result.items() if item is not None or key in nullable}
