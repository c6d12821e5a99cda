"""Calls and labels as the APIs of OpenAI and Mistral write them, beside a message's text.

Separate from `tool_calls.py` because a row's author writes these, not a model: what is broken here
is an error of the row, and arguments as a string of JSON are the rule.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data.conversation import Tool, ToolCall
from data.lenient_json import LiteralError, shorten
from data.reply import Reply, explain_problems
from data.tool_calls import make_call, read_calls


def read_api_calls(value: Any, tools: Sequence[Tool]) -> tuple[list[ToolCall], list[str]]:
    """Read a column of calls: one call or a list of them, or either as JSON.

    A call is {"id", "function": {"name", "arguments"}} or the inner object alone.

    Raises: ValueError for a broken call.
    """
    if isinstance(value, str) and value.strip():
        outcomes, repairs = read_calls(value, tools)
        reply = Reply(outcomes=tuple(outcomes))
        if reply.errors:
            raise ValueError(explain_problems(reply))
        return list(reply.calls), repairs
    calls: list[ToolCall] = []
    repairs = []
    # A single call without a list around it is OpenAI's older "function_call"
    for item in value if isinstance(value, list | tuple) else [value]:
        spec = item.get("function") if isinstance(item, Mapping) else None
        spec = spec if isinstance(spec, Mapping) else item
        name = spec.get("name") if isinstance(spec, Mapping) else None
        if not isinstance(name, str) or not name:
            got = shorten(repr(item))
            raise ValueError(
                f"expected a call with a function's name, got {got}; give name and arguments"
            )
        try:
            # Arguments as a string of JSON are normal here, not a repair
            arguments = spec.get("arguments")
            call, repair = make_call(name, arguments, tools, read_label(item, "id"))
        except LiteralError as error:
            raise ValueError(f"{error}; {error.hint}") from None
        calls.append(call)
        repairs += repair
    return calls, repairs


def read_label(raw: Mapping[str, Any], key: str) -> str | None:
    """Return a name or an id. Raises: ValueError for anything but text or null."""
    # An id that is a number in one place and a string in another would match nothing
    value = raw.get(key)
    if not isinstance(value, str | None):
        got = shorten(repr(value))
        raise ValueError(f"expected text under {key!r}, got {got}; write it as a string")
    return value
