"""The child process that runs a user's tools. Standard library only, so that it starts at once.

A process of its own, because a thread cannot be stopped: the parent (`agent/toolbox.py`) kills this
one when a tool takes too long, and never imports the user's file. It is no sandbox: the file is the
user's own code and runs with the user's rights.

The protocol: one line of JSON for each message, over the child's standard input and output.

    child     once, after it has run the file
              {"tools": [{"name": "add", "description": "Adds.", "parameters": {JSON schema}}, ...]}
           or {"error": "one sentence for the user"}, and the parent ends the child
    parent    {"name": "add", "arguments": {"a": 1, "b": 2}}    checked against the schema before
    child     {"result": 3}                                     any JSON value
           or {"error": {"code": ..., "message": ..., "hint": ...}}    for the model to read

Requests come one at a time. Without an answer in time, or where the pipe breaks, the parent kills
the child and starts another one.
"""

import asyncio
import enum
import importlib.util
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

Function = Callable[..., Any]

PLAIN = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
    tuple: "array",
    set: "array",
    type(None): "null",
}
# `Optional[int]` and `int | str` are two types of object to `typing`.
UNIONS = (typing.Union, types.UnionType)
MODULE = "user_tools"  # the name under which the user's file is imported


def type_schema(hint: Any) -> dict[str, Any]:
    """JSON schema of a type hint. Raises: ValueError for a hint that JSON cannot express."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)  # list[int]: list, (int,)
    if (origin or hint) in PLAIN and not arguments:
        return {"type": PLAIN[origin or hint]}
    if origin is typing.Literal:
        return _enum_schema(list(arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_schema([member.value for member in hint])
    if origin in (list, tuple, set):
        items = [type_schema(argument) for argument in arguments if argument is not ...]
        # A tuple's items may differ in type; then the list is described without them.
        if not items or items.count(items[0]) < len(items):
            return {"type": "array"}
        return {"type": "array", "items": items[0]}
    if origin is dict and arguments:
        inner = type_schema(arguments[1])
        return {"type": "object", "additionalProperties": inner} if inner else {"type": "object"}
    if origin in UNIONS:
        return {"anyOf": [type_schema(argument) for argument in arguments]}
    if hint is Any:
        return {}
    raise ValueError(
        f"type hint {hint!r}: use str, int, float, bool, list, dict, Literal, Enum or Optional"
    )


def _enum_schema(values: list[Any]) -> dict[str, Any]:
    """The schema of a choice, with a type only if all values share one."""
    kinds = {PLAIN.get(type(value)) for value in values}
    if not kinds <= set(PLAIN.values()):
        raise ValueError(f"choice of {values!r}: use strings, numbers or booleans")
    return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}


def convert(hint: Any, value: Any) -> Any:
    """A JSON value as its type hint promises it: Enum members, tuples, sets; others as they are.

    Raises: ValueError, TypeError where the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint in (tuple, set):  # JSON has only lists
        return hint(value)
    if origin in UNIONS:
        return _convert_union(arguments, value)
    if origin is dict and arguments:
        return {key: convert(arguments[1], part) for key, part in value.items()}
    if origin in (list, tuple, set) and arguments:
        # tuple[int, str] has a hint for each item; list[int] and tuple[int, ...] have one for all.
        if origin is tuple and ... not in arguments:
            hints = arguments
        else:
            hints = arguments[:1] * len(value)
        return origin(convert(item, part) for item, part in zip(hints, value, strict=True))
    return value


def _convert_union(hints: tuple[Any, ...], value: Any) -> Any:
    """The value as the first hint that takes it; plain types, which need no conversion, first."""
    if type(value) in hints:
        return value
    for hint in hints:
        try:
            if hint not in PLAIN:
                return convert(hint, value)
        except (ValueError, TypeError, AttributeError):
            continue
    return value


def argument_descriptions(doc: str) -> dict[str, str]:
    """The arguments' texts in a docstring of Google's (`Args:`) or Sphinx's (`:param x:`) style."""
    more = r"(.*(?:\n[ \t]+.*)*)"  # the rest of the line, and the indented lines below it
    sphinx = re.findall(rf"^:param\s+(?:[^:\n]*\s)?(\w+)\s*:{more}", doc, re.MULTILINE)
    heading = r"^(?:Args|Arguments|Parameters):[ \t]*\n"
    section = re.search(heading + r"((?:[ \t]+.*\n?)+)", doc, re.MULTILINE)
    # Without its indent each argument begins a line. The newline in front keeps `cleandoc` from
    # treating the first argument as the summary line, whose indent does not count.
    lines = inspect.cleandoc("\n" + section.group(1)) if section else ""
    google = re.findall(rf"^(\w+)\s*(?:\(.*?\))?:{more}", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in sphinx + google}


def summary(doc: str) -> str:
    """The first paragraph, without the arguments where no blank line parts them from it."""
    arguments = r"^(?::\w+|(?:Args|Arguments|Parameters|Returns?|Raises):)"
    first = re.split(rf"{arguments}|\n\s*\n", doc, maxsplit=1, flags=re.MULTILINE)[0]
    return " ".join(first.split())


def function_schema(name: str, function: Function) -> dict[str, Any]:
    """{"name", "description", "parameters"} of a function.

    Raises: ValueError for parameters that JSON cannot describe; NameError for an unknown hint.
    """
    doc = inspect.getdoc(function) or ""
    hints, texts = typing.get_type_hints(function), argument_descriptions(doc)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise ValueError(
                f"parameter {argument}: tools are called by keyword; "
                "*args and positional-only are not usable"
            )
        if argument.name not in hints:
            raise ValueError(f"parameter {argument.name} has no type hint; the model needs one")
        properties[argument.name] = _parameter_schema(hints[argument.name], argument.default)
        # In the docstring only; a model chooses its arguments by these words.
        if argument.name in texts:
            properties[argument.name]["description"] = texts[argument.name]
        if argument.default is argument.empty:
            required.append(argument.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": summary(doc), "parameters": parameters}


def _parameter_schema(hint: Any, default: Any) -> dict[str, Any]:
    """`X | None = None` is an X that may be left out; any other None is a value of its own."""
    rest = tuple(argument for argument in typing.get_args(hint) if argument is not type(None))
    if default is None and typing.get_origin(hint) in UNIONS and rest:
        hint = typing.Union[rest]  # noqa: UP007 (built at run time)
    return type_schema(hint)


def load_functions(path: Path) -> dict[str, Function]:
    """The public functions that the file itself defines, in order.

    The file may import modules that lie beside it, as a script may. Raises: whatever it raises.
    """
    # It was the folder of this file, where `import agent` would find ours and not the user's.
    sys.path[0] = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(MODULE, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # where `get_type_hints` looks up hints that are written as text
    spec.loader.exec_module(module)
    functions = {}
    for name, value in vars(module).items():
        # Imported functions carry another module's name. Routines, because what functools.cache
        # returns is no function to `inspect`.
        is_own = inspect.isroutine(value) and getattr(value, "__module__", "") == MODULE
        if is_own and not name.startswith("_"):
            functions[name] = value
    return functions


def describe(path: Path) -> tuple[dict[str, Function], dict[str, Any]]:
    """The functions and the first line to send: {"tools": [...]} or {"error": sentence}."""
    try:
        functions = load_functions(path)
    # A user's file can raise anything; the parent reports it. Ctrl-C and kills still end the child.
    except (Exception, SystemExit) as error:
        return {}, {"error": f"{path}: running it failed: {type(error).__name__}: {error}"}
    schemas, problems = [], []
    for name, function in functions.items():
        try:
            schemas.append(function_schema(name, function))
        # NameError: a hint written as text names nothing. One report lists all problems.
        except (ValueError, NameError, TypeError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        return {}, {"error": f"{path}: " + "; ".join(problems)}
    if not schemas:
        nothing = "defines no public function; each one without a leading underscore becomes a tool"
        return {}, {"error": f"{path}: {nothing}"}
    return functions, {"tools": schemas}


def run(functions: dict[str, Function], request: dict[str, Any]) -> dict[str, Any]:
    """{"result": JSON value} or {"error": {"code", "message", "hint"}}."""
    try:
        function, arguments = functions[request["name"]], request["arguments"]
        hints = typing.get_type_hints(function)
        result = function(**{name: convert(hints[name], arguments[name]) for name in arguments})
        if inspect.iscoroutine(result):  # the tool is an `async def`
            result = asyncio.run(result)
        return {"result": as_json(result)}
    except (Exception, SystemExit) as error:  # a tool can raise anything; the model reads it
        message = f"{type(error).__name__}: {error}"
        hint = "try other arguments or answer without it"
        return {"error": {"code": "tool_failed", "message": message, "hint": hint}}


def as_json(value: Any) -> Any:
    """The value as JSON can write it: sets become lists, unknown objects their text."""

    def replace(item: Any) -> Any:
        return list(item) if isinstance(item, set) else str(item)

    try:
        return json.loads(json.dumps(value, default=replace, allow_nan=False))
    except (TypeError, ValueError, RecursionError):  # odd keys, NaN, a circle
        return str(value)


def main() -> None:
    """Writes the tools, then answers requests until the parent closes the pipe."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    # The protocol uses copies of the two pipes. What a tool prints goes to standard error, where it
    # cannot mix with the answers; what it reads is empty, so that it cannot take a request away.
    # Done on descriptors, because the programs that a tool starts inherit those.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    functions, greeting = describe(Path(sys.argv[1]))
    print(json.dumps(greeting), file=channel, flush=True)
    for line in requests:
        print(json.dumps(run(functions, json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
