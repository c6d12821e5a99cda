"""The fields of a request's body: what each may be, and what it says of the reply; or a 400.

Strict, because a field that is silently left out is a wrong answer that nobody notices.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from common.cli import shorten
from data.conversation import Tool
from data.lenient_json import read_text
from data.tool_calls import read_tool
from serve.errors import ApiError

MAX_SHOWN = 100  # characters of a value in an error
MAX_STOPS, MAX_STOP = 4, 100  # stop texts, and characters of one
ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def _expected(name: str, what: str, value: Any) -> ApiError:
    return ApiError(
        f"{name}: expected {what}, got {shorten(json.dumps(value, ensure_ascii=False), MAX_SHOWN)}"
    )


Field = Callable[[str, Any], dict[str, Any]]


def _text(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise _expected(name, "a text", value)
    return {name: value}


def _number(least: float, most: float, into: str) -> Field:
    def read(name: str, value: Any) -> dict[str, Any]:
        # type() and not isinstance(), because to Python a bool is an int
        if type(value) not in (int, float) or not least <= value <= most:
            raise _expected(name, f"a number from {least:g} to {most:g}", value)
        return {into: float(value)}

    return read


def _whole(least: int, most: int, into: str) -> Field:
    def read(name: str, value: Any) -> dict[str, Any]:
        if type(value) is not int or not least <= value <= most:
            raise _expected(name, f"a whole number from {least} to {most}", value)
        return {into: value}

    return read


def _only(*served: Any) -> Field:
    """For what would change the reply: null, or the values that leave it as it is."""
    what = " or ".join(json.dumps(one) for one in served) or "null"

    def read(name: str, value: Any) -> dict[str, Any]:
        # 0 is 0.0 but not false, which Python takes for the same
        if not any(value == one and isinstance(value, bool) == (one is False) for one in served):
            raise _expected(name, what, value)
        return {}

    return read


def _ignored(kind: type, what: str) -> Field:
    """For what says nothing about the reply."""

    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, kind):
            raise _expected(name, what, value)
        return {}

    return read


def _flag(into: str, opposite: bool = False) -> Field:
    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise _expected(name, "true or false", value)
        return {into: value != opposite}

    return read


def _stops(name: str, value: Any) -> dict[str, Any]:
    stops = [value] if isinstance(value, str) else value
    is_right = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not is_right or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP for s in stops):
        what = f"a text or a list of up to {MAX_STOPS}, of 1 to {MAX_STOP} characters each"
        raise _expected(name, what, value)
    return {"stops": tuple(stops)}


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise _expected(name, 'an object of "include_usage" alone', value)
    return _flag("include_usage")(f"{name}.include_usage", value.get("include_usage") or False)


def _tools(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list):
        raise _expected(name, "a list of tools", value)
    tools: list[Tool] = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict) or item.get("type") != "function":
            raise _expected(f"{name}: tool {number}", 'an object of the type "function"', item)
        function = item.get("function")
        if isinstance(function, dict):  # OpenAI's switch for its own grammar; ours is --constrain
            function = {key: part for key, part in function.items() if key != "strict"}
        try:
            tools.append(read_tool({"type": "function", "function": function}))
        except ValueError as error:
            raise ApiError(f"{name}: tool {number}: {error}") from None
    names = [tool.name for tool in tools]
    twice = next((one for one, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ApiError(f"{name}: expected different names, got {shorten(twice, MAX_SHOWN)} twice")
    return {"tools": tuple(tools)}


def _tool_choice(name: str, value: Any) -> dict[str, Any]:
    if value in ("auto", "none", "required"):
        return {"choice": value}
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type") != "function":
        raise _expected(name, "auto, none, required or a function", value)
    if not isinstance(function.get("name"), str):
        raise _expected(f"{name}.function.name", "the name of a tool", function.get("name"))
    return {"choice": "named", "name": function["name"]}


def _messages(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list) or not value:
        raise _expected(name, "a list of messages", value)
    messages = []
    for number, item in enumerate(value, start=1):
        where = f"{name}: message {number}"
        if not isinstance(item, dict):
            raise _expected(where, "an object", item)
        # Clients send answers back as they came: with null under "refusal", which is no key of ours
        message = {key: part for key, part in item.items() if part is not None}
        odd = sorted(set(message) - set(MESSAGE_KEYS))
        if odd:
            known = ", ".join(MESSAGE_KEYS)
            raise ApiError(f"{where}: expected {known}, got {odd[0]}", "unknown_parameter")
        if message.get("role") not in ROLES:
            raise _expected(f"{where}: role", " or ".join(ROLES), message.get("role"))
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in parts):
            raise _expected(f"{where}: content", "text, null or text parts", content)
        try:
            messages.append({**message, "content": read_text(content)})
        except ValueError as error:
            raise ApiError(f"{where}: content: {error}") from None
    return {"messages": messages}


FIELDS: Mapping[str, Field] = {
    "model": _text,
    "messages": _messages,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _flag("one_call", opposite=True),
    "max_tokens": _whole(1, 10**6, "max_new_tokens"),
    "max_completion_tokens": _whole(1, 10**6, "max_new_tokens"),
    "temperature": _number(0, 2, "temperature"),
    "top_p": _number(1e-6, 1, "top_p"),
    "stop": _stops,
    "seed": _whole(-(2**63), 2**63 - 1, "seed"),
    "stream": _flag("stream"),
    "stream_options": _stream_options,
    "adapter_scale": _number(0, 4, "scale"),  # ours: 0 is the base, 1 the adapter as trained
    # At the values that OpenAI documents as the default, which clients send unasked
    "n": _only(1),
    "presence_penalty": _only(0),
    "frequency_penalty": _only(0),
    "logit_bias": _only({}),
    "logprobs": _only(False),
    "top_logprobs": _only(0),
    "response_format": _only({"type": "text"}),
    "modalities": _only(["text"]),
    "reasoning_effort": _only(),
    "service_tier": _only("auto", "default"),
    "store": _only(False),
    # For the bills and the statistics of whoever serves many
    "user": _ignored(str, "a text"),
    "safety_identifier": _ignored(str, "a text"),
    "prompt_cache_key": _ignored(str, "a text"),
    "metadata": _ignored(dict, "an object"),
}
