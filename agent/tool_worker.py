"""The child process that runs a user's tools: one JSON line in, one JSON line out. Standard library only.

A process of its own, because a thread cannot be stopped: the parent kills this one when a tool takes too long. It starts
by writing the tools' schemas, made from type hints and docstrings; the parent never imports the user's file. This is no
sandbox: the file is the user's own code and runs with the user's rights.
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
UNIONS = (typing.Union, types.UnionType)
MODULE = "user_tools"


def type_schema(hint: Any) -> dict[str, Any]:
    """JSON schema of a type hint. Raises: ValueError for a hint that JSON cannot express."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if (origin or hint) in PLAIN and not arguments:
        return {"type": PLAIN[origin or hint]}
    if origin is typing.Literal:
        return _enum_schema(list(arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_schema([member.value for member in hint])
    if origin in (list, tuple, set):
        # A tuple's items may differ in kind; then the list is described without them.
        items = [type_schema(argument) for argument in arguments if argument is not ...]
        return {
            "type": "array",
            **({"items": items[0]} if items and items.count(items[0]) == len(items) else {}),
        }
    if origin is dict and arguments:
        inner = type_schema(arguments[1])
        return {"type": "object", **({"additionalProperties": inner} if inner else {})}
    if origin in UNIONS:
        return {"anyOf": [type_schema(argument) for argument in arguments]}
    if hint is Any:
        return {}
    raise ValueError(
        f"type hint {hint!r}: use str, int, float, bool, list, dict, Literal, Enum or Optional"
    )


def _enum_schema(values: list[Any]) -> dict[str, Any]:
    """The schema of a choice; its type stands there if all values share one that JSON has."""
    kinds = {PLAIN.get(type(value)) for value in values}
    if not kinds <= set(PLAIN.values()):
        raise ValueError(f"choice of {values!r}: use strings, numbers or booleans")
    return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}


def convert(hint: Any, value: Any) -> Any:
    """A JSON value as the type hint promises it: Enum members, tuples and sets; anything else stays as it is.

    Raises: ValueError, TypeError where the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint in (tuple, set):
        return hint(value)
    if origin in (list, tuple, set):
        items = (
            [*arguments[:1]] * len(value) if origin is not tuple or ... in arguments else arguments
        )
        return (
            origin(convert(item, part) for item, part in zip(items, value, strict=True))
            if arguments
            else value
        )
    if origin is dict and arguments:
        return {key: convert(arguments[1], part) for key, part in value.items()}
    return _convert_union(arguments, value) if origin in UNIONS else value


def _convert_union(hints: tuple[Any, ...], value: Any) -> Any:
    """The value as the first hint that takes it; plain types come first, as they need no conversion."""
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
    """Texts of the arguments in a Google-style (`Args:`) or Sphinx-style (`:param x:`) docstring."""
    sphinx = re.findall(r"^:param\s+(?:[^:\n]*\s)?(\w+)\s*:(.*(?:\n[ \t]+.*)*)", doc, re.MULTILINE)
    section = re.search(
        r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?)+)", doc, re.MULTILINE
    )
    lines = inspect.cleandoc("\n" + section.group(1)) if section else ""
    google = re.findall(r"^(\w+)\s*(?:\(.*?\))?:(.*(?:\n[ \t]+.*)*)", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in sphinx + google}


def summary(doc: str) -> str:
    """The first paragraph, without the arguments where no blank line parts them from it."""
    text = re.split(
        r"^(?::\w+|(?:Args|Arguments|Parameters|Returns?|Raises):)|\n\s*\n",
        doc,
        maxsplit=1,
        flags=re.M,
    )[0]
    return " ".join(text.split())


def function_schema(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """{"name", "description", "parameters"} of a function. Raises: ValueError for parameters that cannot be described."""
    doc = inspect.getdoc(function) or ""
    hints, texts = typing.get_type_hints(function), argument_descriptions(doc)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise ValueError(
                f"parameter {argument}: tools are called by keyword; *args and positional-only are not usable"
            )
        if argument.name not in hints:
            raise ValueError(f"parameter {argument.name} has no type hint; the model needs one")
        properties[argument.name] = _parameter_schema(hints[argument.name], argument.default)
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


def load_functions(path: Path) -> dict[str, Callable[..., Any]]:
    """The public functions that the file itself defines, in order. Raises whatever running the file raises.

    The file may import modules that lie beside it, as a script may.
    """
    sys.path[0] = str(
        path.resolve().parent
    )  # was this file's own folder, whose names are not the user's
    spec = importlib.util.spec_from_file_location(MODULE, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        # A routine: functools.cache makes something else of a function.
        if inspect.isroutine(value)
        and getattr(value, "__module__", "") == MODULE
        and not name.startswith("_")
    }


def describe(path: Path) -> tuple[dict[str, Callable[..., Any]], dict[str, Any]]:
    """The functions and the first line to send: {"tools": [...]} or {"error": sentence}."""
    try:
        functions = load_functions(path)
    except (
        Exception,
        SystemExit,
    ) as error:  # a user's file can raise anything; the parent reports it
        return {}, {"error": f"{path}: running it failed: {type(error).__name__}: {error}"}
    schemas, problems = [], []
    for name, function in functions.items():
        try:
            schemas.append(function_schema(name, function))
        except (ValueError, NameError, TypeError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        return {}, {"error": f"{path}: " + "; ".join(problems)}
    if not schemas:
        return {}, {
            "error": f"{path}: defines no public function; each one without a leading underscore becomes a tool"
        }
    return functions, {"tools": schemas}


def run(functions: dict[str, Callable[..., Any]], request: dict[str, Any]) -> dict[str, Any]:
    """{"result": JSON value} or {"error": {"code", "message", "hint"}}."""
    try:
        function = functions[request["name"]]
        hints = typing.get_type_hints(function)
        arguments = {
            name: convert(hints[name], value) for name, value in request["arguments"].items()
        }
        result = function(**arguments)
        return {"result": as_json(asyncio.run(result) if inspect.iscoroutine(result) else result)}
    except (Exception, SystemExit) as error:  # the model gets to read it
        message = f"{type(error).__name__}: {error}"
        return {
            "error": {
                "code": "tool_failed",
                "message": message,
                "hint": "try other arguments or answer without it",
            }
        }


def as_json(value: Any) -> Any:
    """The value as JSON holds it: an object that it does not know comes as its text, a set as a list."""
    try:
        return json.loads(
            json.dumps(
                value, default=lambda x: list(x) if isinstance(x, set) else str(x), allow_nan=False
            )
        )
    except (TypeError, ValueError, RecursionError):  # odd keys, NaN, a circle
        return str(value)


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    # What a tool prints must not mix with the answers, and what it reads, or a program that it starts, not be a request.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    functions, greeting = describe(Path(sys.argv[1]))
    print(json.dumps(greeting), file=channel, flush=True)
    for line in requests:
        print(json.dumps(run(functions, json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
