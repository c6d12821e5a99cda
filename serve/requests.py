"""The body of a chat completion -> what the model reads and how it is to reply; or a 400.

A null counts as an absent field, as OpenAI's own client means it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.cli import shorten
from data.conversation import DEFAULT_PROMPT, THINK_REQUEST, Conversation, Tool
from data.forms.chats import CALLING, OBSERVATION, smolagents
from data.lenient_json import load_json
from data.schema import conversation_from
from data.tokenizer import Tokenizer
from serve.errors import ApiError
from serve.fields import FIELDS, MAX_SHOWN

SAMPLING = ("temperature", "top_p", "seed")


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
            param=unknown[0],
        )
    for name in ("model", "messages"):
        if name not in given:
            told = f"{name}: expected in every request, got none"
            raise ApiError(told, "missing_parameter", param=name)
    chat: dict[str, Any] = {}
    for name, item in given.items():
        try:
            chat |= FIELDS[name](name, item)
        except ApiError as error:
            error.param = name  # here, so that no reader of a field can forget it
            raise
    if chat.get("include_usage") and not chat.get("stream"):
        told = "stream_options: expected only beside stream: true, got it without"
        raise ApiError(told, param="stream_options")
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
        told = f"tool_choice: expected auto or none without tools, got {choice}"
        raise ApiError(told, param="tool_choice")
    if name is not None and name not in names:
        told = f"tool_choice: expected one of {', '.join(names)}, got {shorten(name, MAX_SHOWN)}"
        raise ApiError(told, param="tool_choice")
    sampling = {key: chat.pop(key) for key in SAMPLING if key in chat}
    return Chat(**chat, sampling=sampling)


def conversation_of(chat: Chat, tokenizer: Tokenizer, *, is_whole: bool = False) -> Conversation:
    """The conversation as the model was trained to read it; a whole one may end with its reply.

    Raises: ApiError where the messages do not follow one another as in a chat.
    """
    wording = tokenizer.prompt or DEFAULT_PROMPT
    # A reply of which nothing could be given out, as a call that was cut, comes back with the chat
    said = [one for one in chat.messages if one["role"] != "assistant" or _says_something(one)]
    messages = _joined(_plain(said))
    try:
        read = conversation_from(chat.tools, messages, wording)
    except ValueError as error:
        raise ApiError(str(error), param="messages") from None
    if read.messages[-1:] and read.messages[-1].role == "model" and not is_whole:
        told = "messages: expected the last one from user or tool, got the assistant's"
        raise ApiError(told, param="messages")
    if not read.messages:
        told = "messages: expected at least one from the user, got none"
        raise ApiError(told, param="messages")
    # A thought that a client sends back would ask for thinking in the first turn, and so change
    # what the model has read before it thought.
    asks = any(THINK_REQUEST in message["content"] for message in chat.messages)
    system = read.system if asks else read.system.removesuffix(THINK_REQUEST).rstrip("\n")
    return dataclasses.replace(read, prompt=wording if chat.tools else None, system=system)


def _says_something(message: dict[str, Any]) -> bool:
    return any(message.get(key) for key in ("content", "tool_calls", "reasoning_content"))


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
