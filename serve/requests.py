"""The body of a chat completion -> what the model reads and how it is to reply; or a 400.

Strict, because a field that is silently left out is a wrong answer that nobody notices. A null
counts as an absent field, as OpenAI's own client means it.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.cli import shorten
from data.conversation import DEFAULT_PROMPT, THINK_REQUEST, Conversation, Tool
from data.forms.chats import CALLING, OBSERVATION, smolagents
from data.lenient_json import load_json, read_text
from data.schema import conversation_from
from data.tokenizer import Tokenizer
from data.tool_calls import read_tool
from serve.errors import ApiError

MAX_SHOWN = 100  # characters of a value in an error
MAX_STOPS, MAX_STOP = 4, 100  # stop texts, and characters of one
SAMPLING = ("temperature", "top_p", "seed")
ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


@dataclass(frozen=True)
class Chat:
    """A request that is right in itself; whether model and tokenizer can serve it comes later."""

    model: str
    messages: list[dict[str, Any]]
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"  # auto, none, required, or "named"
    name: str | None = None  # of the tool that must be called
    one_call: bool = False
    max_new_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # what differs from the defaults
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    scale: float = 1.0


def read_chat(body: bytes) -> Chat:
    """Reads a request. Raises: ApiError for whatever is not served, naming the field."""
    given = {key: item for key, item in read_object(body).items() if item is not None}
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        known = ", ".join(FIELDS)
        raise ApiError(
            f"{unknown[0]}: this server does not know the field; it knows {known}",
            "unknown_parameter",
        )
    for name in ("model", "messages"):
        if name not in given:
            raise ApiError(f"{name}: expected in every request, got none", "missing_parameter")
    chat: dict[str, Any] = {}
    for name, item in given.items():
        chat |= FIELDS[name](name, item)
    if chat.get("include_usage") and not chat.get("stream"):
        raise ApiError("stream_options: expected only beside stream: true, got it without")
    return _with_choice(chat)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises: ApiError for anything else."""
    try:
        value = load_json(body.decode())
    except (ValueError, RecursionError) as error:  # UTF-8's and JSON's errors are ValueErrors
        raise ApiError(f"the body: expected one JSON object, got {error}", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(f"the body: expected an object, got {shorten(body.decode(), MAX_SHOWN)}")
    return value


def _with_choice(chat: dict[str, Any]) -> Chat:
    """Checks `tool_choice` against the tools."""
    names = [tool.name for tool in chat.get("tools", ())]
    choice, name = chat.get("choice", "auto"), chat.get("name")
    if choice in ("required", "named") and not names:
        raise ApiError(f"tool_choice: expected auto or none without tools, got {choice}")
    if name is not None and name not in names:
        raise ApiError(
            f"tool_choice: expected one of {', '.join(names)}, got {shorten(name, MAX_SHOWN)}"
        )
    sampling = {key: chat.pop(key) for key in SAMPLING if key in chat}
    return Chat(**chat, sampling=sampling)


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


def _one_reply(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not int or value != 1:
        raise _expected(name, "1, one reply a request", value)
    return {}


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
    "n": _one_reply,
    "adapter_scale": _number(0, 4, "scale"),  # ours: 0 is the base, 1 the adapter as trained
}


def conversation_of(chat: Chat, tokenizer: Tokenizer, *, is_whole: bool = False) -> Conversation:
    """The conversation as the model was trained to read it; a whole one may end with its reply.

    Raises: ApiError where the messages do not follow one another as in a chat.
    """
    wording = tokenizer.prompt or DEFAULT_PROMPT
    messages = _joined(_plain(chat.messages))
    try:
        read = conversation_from(chat.tools, messages, wording)
    except ValueError as error:
        raise ApiError(str(error)) from None
    if read.messages[-1:] and read.messages[-1].role == "model" and not is_whole:
        raise ApiError("messages: expected the last one from user or tool, got the assistant's")
    if not read.messages:
        raise ApiError("messages: expected at least one from the user, got none")
    # A thought that a client sends back would ask for thinking in the first turn, and so change
    # what the model has read before it thought.
    asks = any(THINK_REQUEST in message["content"] for message in chat.messages)
    system = read.system if asks else read.system.removesuffix(THINK_REQUEST).rstrip("\n")
    return dataclasses.replace(read, prompt=wording if chat.tools else None, system=system)


def _plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with smolagents' calls and results in words turned back into what they were."""
    spelt: list[dict[str, Any]] = []
    for message in messages:
        role, content, before = message["role"], message["content"], spelt[-1:]
        if role == "assistant" and CALLING in content and not message.get("tool_calls"):
            said, _, calls = content.rpartition(CALLING)
            if said.strip():
                spelt.append({**message, "content": said.strip()})
            spelt.append({"role": "tool-call", "content": CALLING + calls})
        elif role == "user" and before and before[0]["role"] in ("tool-call", "tool-response"):
            is_result = OBSERVATION.match(content)
            spelt.append({**message, "role": "tool-response" if is_result else "user"})
        else:
            spelt.append(message)
    try:
        return [dict(message) for message in smolagents({}, spelt).messages]
    except ValueError:
        return list(messages)  # words that only look like a call


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring messages of one side as one, because Gemma's turns alternate."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else {}
        is_text = not last.get("tool_calls")
        if (
            message["role"] in ("user", "assistant")
            and last.get("role") == message["role"]
            and is_text
        ):
            texts = [last["content"], message["content"]]
            found[-1] = {**last, **message, "content": "\n\n".join(filter(None, texts))}
        else:
            found.append(message)
    return found
