"""The child process that runs a user's tools: one JSON line in, one JSON line out. Standard library only.

A process of its own, because a thread cannot be stopped: the parent kills this one when a tool takes too long. It starts
by writing the tools' schemas, made from type hints and docstrings; the parent never imports the user's file. This is no
sandbox: the file is the user's own code and runs with the user's rights.
"""

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

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


def type_schema(hint: Any) -> dict[str, Any]:
    """JSON schema of a type hint. Raises: ValueError for a hint that JSON cannot express."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if origin is typing.Literal:
        return {"type": PLAIN.get(type(arguments[0]), "string"), "enum": list(arguments)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    if origin in (list, tuple, set):
        return {"type": "array", **({"items": type_schema(arguments[0])} if arguments else {})}
    if origin is dict:
        return {"type": "object"}
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return type_schema(inner[0]) if len(inner) == 1 else {"anyOf": [type_schema(a) for a in inner]}
    if hint is Any:
        return {}
    raise ValueError(f"type hint {hint!r}: use str, int, float, bool, list, dict, Literal or Optional")


def argument_descriptions(doc: str) -> dict[str, str]:
    """Texts of the arguments in a Google-style (`Args:`) or Sphinx-style (`:param x:`) docstring."""
    found = dict(re.findall(r"^\s*:param\s+(\w+)\s*:\s*(.+)$", doc, re.MULTILINE))
    section = re.search(r"^\s*(?:Args|Arguments|Parameters):\s*\n((?:[ \t]+.+\n?)+)", doc, re.MULTILINE)
    if section:
        found |= dict(re.findall(r"^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.+)$", section.group(1), re.MULTILINE))
    return {name: text.strip() for name, text in found.items()}


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
        properties[argument.name] = type_schema(hints[argument.name])
        if argument.name in texts:
            properties[argument.name]["description"] = texts[argument.name]
        if argument.default is argument.empty:
            required.append(argument.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": doc.split("\n\n")[0].replace("\n", " ").strip(), "parameters": parameters}


def load_functions(path: Path) -> dict[str, Callable[..., Any]]:
    """The public functions that the file itself defines, in order. Raises whatever running the file raises."""
    spec = importlib.util.spec_from_file_location("user_tools", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_tools"] = module
    spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == "user_tools" and not name.startswith("_")
    }


def describe(path: Path) -> tuple[dict[str, Callable[..., Any]], dict[str, Any]]:
    """The functions and the first line to send: {"tools": [...]} or {"error": sentence}."""
    try:
        functions = load_functions(path)
    except Exception as error:  # a user's file can raise anything; the parent reports it
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
    """{"result": JSON value} or {"error": {code, message}}; a result that JSON cannot hold comes as its text."""
    try:
        result = functions[request["name"]](**request["arguments"])
        return {"result": json.loads(json.dumps(result, default=str, allow_nan=False))}
    except Exception as error:  # the model gets to read it
        return {"error": {"code": "tool_failed", "message": f"{type(error).__name__}: {error}"}}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What a tool prints must not mix with the answers.
    os.dup2(2, 1)
    functions, greeting = describe(Path(sys.argv[1]))
    print(json.dumps(greeting), file=channel, flush=True)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    sys.stdin = open(os.devnull, encoding="utf-8")
    for line in requests:
        print(json.dumps(run(functions, json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
