"""Tool calls from what stands between two tags: the good ones, and a structured error for each broken one.

Separate because rows and a model's replies share it: a row with an error is refused, a reply hands the error back to
the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data.conversation import Tool, ToolCall
from data.lenient_json import HINTS, LiteralError, check_value, read_values, shorten

MAX_CALLS = 64


@dataclass(frozen=True)
class CallError:
    """Why a call cannot be run, in words that the model can act on. `code` is a key of `data.lenient_json.HINTS`."""

    code: str
    message: str
    hint: str
    name: str | None = None

    def as_result(self) -> dict[str, dict[str, str]]:
        """What the model reads in place of a tool's result: {"error": {"code", "message", "hint"}}."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


Outcome = ToolCall | CallError


def error_for(code: str, message: str, name: str | None = None) -> CallError:
    """Build the error with the code's standard hint."""
    return CallError(code, message, HINTS[code], name)


def read_calls(body: str, tools: Iterable[Tool] = ()) -> tuple[list[Outcome], list[str]]:
    """Read what stands inside one pair of tags, usually one {"name": ..., "arguments": {...}}; never raises.

    Args:
        tools: where a call gives no arguments, these tell whether it needs any.
    Returns:
        Calls and errors in their order, and the names of the repairs that were needed.
    """
    try:
        values, repairs = read_values(body)
    except LiteralError as error:
        return [error_for(error.code, str(error))], []
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
    if len(items) > MAX_CALLS:
        outcomes.append(
            error_for("too_many_calls", f"expected at most {MAX_CALLS} calls, got {len(items)}")
        )
    return outcomes, repairs


def _read_call(value: Any, tools: Iterable[Tool]) -> tuple[Outcome, list[str]]:
    """Read one {"name", "arguments"} object; other keys are dropped."""
    if not isinstance(value, dict):
        return error_for("not_an_object", f"expected a JSON object, got {shorten(repr(value))}"), []
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return error_for("missing_name", f"expected a tool's name, got {shorten(repr(name))}"), []
    if "arguments" not in value and "parameters" in value:
        return error_for(
            "missing_arguments", 'expected the key "arguments", got "parameters"', name
        ), []
    arguments = value.get("arguments")
    try:
        call, repairs = make_call(name, arguments, tools)
    except LiteralError as error:
        return error_for(error.code, str(error), name), []
    repairs = (["string_arguments"] if isinstance(arguments, str) else []) + repairs
    return call, repairs + (["extra_keys"] if set(value) - {"name", "arguments"} else [])


def make_call(
    name: str, arguments: Any, tools: Iterable[Tool] = (), id: str | None = None
) -> tuple[ToolCall, list[str]]:
    """Build a call from arguments that are an object, a string that holds one, or absent.

    Raises:
        LiteralError: they are anything else, or absent although the tool requires some.
    """
    repairs: list[str] = []
    tool = next((tool for tool in tools if tool.name == name), None)
    if isinstance(arguments, str) and arguments.strip():
        values, repairs = read_values(arguments)
        arguments = values[0] if len(values) == 1 else values
    if arguments is None or arguments == "":
        if tool and tool.required:
            raise LiteralError(
                "missing_arguments",
                f"{name}: expected {', '.join(tool.required)}, got no arguments",
            )
        arguments, repairs = {}, [*repairs, "no_arguments"]
    if not isinstance(arguments, dict):
        raise LiteralError(
            "arguments_not_object", f"{name}: expected an object, got {shorten(repr(arguments))}"
        )
    kept = {
        key: value
        for key, value in arguments.items()
        if value is not None or _may_be_null(tool, key)
    }
    if len(kept) < len(arguments):
        repairs = [*repairs, "stray_null"]
    return ToolCall(name, check_value(kept), id), repairs


def _may_be_null(tool: Tool | None, argument: str) -> bool:
    """False for a null that says nothing: Parquet fills in the arguments of other rows, and optional ones left out."""
    if tool is None or argument in tool.required:
        return True
    schema = tool.parameters.get("properties", {}).get(argument)
    if schema is None:
        return False
    kinds = [
        option.get("type") for option in schema.get("anyOf", ()) if isinstance(option, Mapping)
    ]
    kinds += (
        [schema.get("type")]
        if isinstance(schema.get("type"), str)
        else list(schema.get("type") or ())
    )
    return "null" in kinds or None in (schema.get("enum") or ()) or schema.get("nullable") is True
