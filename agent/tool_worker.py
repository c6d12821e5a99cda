"""The child process that runs a user's tools. It imports little, so that it starts at once.

A process of its own, because a thread cannot be stopped: the program (`agent/toolbox.py`) kills
this one when a tool takes too long, and never imports the user's file. It is no sandbox: the file
is the user's own code and runs with the user's rights, within the limits that `tool_keeper.py`
sets before it starts this.

The protocol: one line of JSON for each message, in both directions over one socket.

    program   {"nonce": N}                       once: run the file
    worker    {"nonce": N, "tools": [{"name": "add", "description": "Adds.", "parameters": {...},
                                       "asks_first": false}]}
           or {"nonce": N, "error": "one sentence for the user"}
    program   {"nonce": N, "name": "add", "arguments": {"a": 1, "b": 2}}    they fit the schema
    worker    {"nonce": N, "result": 3}                                     any JSON value
           or {"nonce": N, "error": {"code": ..., "message": ..., "hint": ...}}    for the model

N is a random number, a new one for each request. A tool that finds the socket can write to it, but
does not know the number, and the program skips every line without it. Requests come one at a time;
without an answer in time the program kills the worker and starts another one.
"""

import asyncio
import contextlib
import enum
import importlib.util
import inspect
import json
import os
import re
import socket
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser

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
# Characters of a result's JSON, all ASCII: the program holds it in memory, whatever a tool returns.
MAX_RESULT = 1 << 24
# Levels of a result. Both sides' JSON recurses, and the program's stack is the deeper one.
MAX_DEPTH = 64
MAX_MESSAGE = 2000  # characters of an error, which may quote a whole argument


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


def read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """(the first paragraph, the arguments' texts) of a docstring, be it Google's, NumPy's or reST.

    One that no style explains is a description and nothing else.
    """
    try:
        parsed = docstring_parser.parse(doc)
    except docstring_parser.ParseError:
        return _on_one_line(re.split(r"\n\s*\n", doc, maxsplit=1)[0]), {}
    # The long description begins with the summary's own next lines where no blank line parts them
    parts = [parsed.short_description or ""]
    if not parsed.blank_after_short_description and parsed.long_description:
        parts += re.split(r"\n\s*\n", parsed.long_description, maxsplit=1)[:1]
    texts = {item.arg_name: _on_one_line(item.description or "") for item in parsed.params}
    return _on_one_line(" ".join(parts)), {name: text for name, text in texts.items() if text}


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def function_schema(name: str, function: Function) -> dict[str, Any]:
    """{"name", "description", "parameters"} of a function.

    Raises: ValueError for parameters that JSON cannot describe; NameError for an unknown hint.
    """
    doc = inspect.getdoc(function) or ""
    hints, (summary, texts) = typing.get_type_hints(function), read_docstring(doc)
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
    return {"name": name, "description": summary, "parameters": parameters}


def _parameter_schema(hint: Any, default: Any) -> dict[str, Any]:
    """`X | None = None` is an X that may be left out; any other None is a value of its own."""
    rest = tuple(argument for argument in typing.get_args(hint) if argument is not type(None))
    if default is None and typing.get_origin(hint) in UNIONS and rest:
        hint = typing.Union[rest]  # noqa: UP007 (built at run time)
    return type_schema(hint)


def load_functions(path: Path) -> tuple[dict[str, Function], set[str]]:
    """The public functions that the file itself defines, in order, and the names that ask first.

    The file may import modules that lie beside it, as a script may, and `agent.confirm`.
    Raises: ValueError for a name under `confirm` that is no tool; whatever the file raises.
    """
    # It was the folder of this file, where `import agent` would find ours and not the user's.
    sys.path[0] = str(path.resolve().parent)
    sys.path.append(str(Path(__file__).resolve().parents[1]))
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
    return functions, _asking_first(functions, getattr(module, "confirm", ()))


def _asking_first(functions: dict[str, Function], listed: Any) -> set[str]:
    """The names under `confirm`, a list of names or functions, and those that are marked."""
    marked = {name for name, function in functions.items() if hasattr(function, "asks_first")}
    if not isinstance(listed, list | tuple | set):
        return marked  # the mark itself, imported under this name
    names = {str(getattr(item, "__name__", item)) for item in listed}
    unknown = [repr(name) for name in names if name not in functions]
    if unknown:
        raise ValueError(f"confirm lists {', '.join(sorted(unknown))}, which is no tool")
    return marked | names


def describe(path: Path) -> tuple[dict[str, Function], dict[str, Any]]:
    """The functions and the first answer: {"tools": [...]} or {"error": sentence}."""
    try:
        functions, asking = load_functions(path)
    except BaseException as error:  # a user's file can raise anything; the program reports it
        return {}, {"error": f"{path}: running it failed: {as_sentence(error)}"}
    schemas, problems = [], []
    for name, function in functions.items():
        try:
            schemas.append(function_schema(name, function) | {"asks_first": name in asking})
        except ValueError as error:  # one report lists all problems
            problems.append(f"{name}: {as_sentence(error).removeprefix('ValueError: ')}")
        # Python evaluates a hint that is written as text: "os.nothing" and "1/0" are such hints.
        except BaseException as error:
            problems.append(f"{name}: a type hint cannot be read: {as_sentence(error)}")
    if problems:
        return {}, {"error": f"{path}: " + "; ".join(problems)}
    if not schemas:
        nothing = "defines no public function; each one without a leading underscore becomes a tool"
        return {}, {"error": f"{path}: {nothing}"}
    return functions, {"tools": schemas}


def as_sentence(error: BaseException) -> str:
    """An exception's type and text on one line; its class is a tool's, and `str` may fail too."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(its text cannot be read)"
    text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


def run(functions: dict[str, Function], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """{"result": JSON value} or {"error": {"code", "message", "hint"}}."""
    try:
        function = functions[name]
        hints = typing.get_type_hints(function)
        result = function(**{key: convert(hints[key], arguments[key]) for key in arguments})
        if inspect.iscoroutine(result):  # the tool is an `async def`
            result = asyncio.run(result)
        return {"result": as_json(result)}
    except BaseException as error:  # a tool can raise anything; the model reads it
        hint = "try other arguments or answer without it"
        return {"error": {"code": "tool_failed", "message": as_sentence(error), "hint": hint}}


def as_json(value: Any) -> Any:
    """The value as JSON can write it: sets become lists, unknown objects and deep values text.

    Raises: ValueError for one that is too large; what a tool's own `__str__` raises.
    """

    def replace(item: Any) -> Any:
        return list(item) if isinstance(item, set) else str(item)

    try:
        text = json.dumps(value, default=replace, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # odd keys, NaN, a circle
        text = json.dumps(str(value))
    if len(text) > MAX_RESULT:
        raise ValueError(f"the result has {len(text)} characters; return at most {MAX_RESULT}")
    plain = json.loads(text)
    return text if is_deeper(plain, MAX_DEPTH) else plain


def is_deeper(value: Any, levels: int) -> bool:
    """True for JSON of more than `levels` lists and objects within one another."""
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(is_deeper(part, levels - 1) for part in parts)


def serve(path: str, channel: int) -> None:
    """Answers requests from the socket `channel` until the program closes it."""
    own = os.getpid()
    functions: dict[str, Function] = {}
    # OSError: the program is gone, or a tool has closed the socket; the keeper sees to the rest.
    with contextlib.suppress(OSError), socket.socket(fileno=channel) as connection:
        for line in connection.makefile("rb"):
            request = json.loads(line)
            if "name" in request:
                answer = run(functions, request["name"], request["arguments"])
            else:
                functions, answer = describe(Path(path))
            if os.getpid() != own:  # a tool forked and came back twice; one process answers
                os._exit(0)
            # The newline in front ends whatever a tool may have begun to write.
            text = json.dumps({"nonce": request["nonce"], **answer})
            connection.sendall(f"\n{text}\n".encode())
