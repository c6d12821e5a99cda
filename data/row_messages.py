"""One raw message of a row -> its meaning. Pure functions: each raises ValueError with "expected ..., got ...; remedy".

Separate from `schema.py`, which knows the order of messages and where they stand, while this file knows the words.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.conversation import Message, Tool, ToolCall, ToolResult
from data.lenient_json import LiteralError, check_value, find_end, shorten
from data.replies import STRUCTURAL, Reply, Segment, assemble, split_mistral, split_text
from data.tool_calls import CallError, make_call, read_calls
from data.tool_schema import read_tools

# Only a tag in front of a list or an object opens the block: prompts also speak of "<tools></tools> XML tags".
_TOOLS_BLOCK = re.compile(r"<tools>\s*(?=\[|\{\s*[\"'])")
_BETWEEN_RESULTS = re.compile(r"</tool_response>\s*<tool_response>")
_OPEN, _CLOSE = "<tool_response>", "</tool_response>"


def text_of(content: Any) -> str:
    """Return a message's text: a string, null, or a list of {"type": "text", "text": ...} parts.

    Raises:
        ValueError: any other content, or half of a surrogate pair.
    """
    parts = content if isinstance(content, list | tuple) else [content]
    texts = []
    for part in parts:
        text = (
            part.get("text")
            if isinstance(part, Mapping) and part.get("type", "text") == "text"
            else part
        )
        if not isinstance(text, str | None):
            raise ValueError(
                f"expected text, got {shorten(repr(part))}; only text parts can be trained on"
            )
        texts.append(text or "")
    joined = "".join(texts)
    try:
        joined.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "expected whole characters, got half of a surrogate pair; repair the encoding"
        ) from None
    return joined


def split_system(text: str) -> tuple[str, tuple[Tool, ...] | None, str]:
    """Cut a Hermes system text at its block of tools.

    Returns:
        The words before, the tools (None if there is no block), and the words after.
    Raises:
        ValueError: a block that is broken, and no other that is whole.
    """
    problem: ValueError | None = None
    for tag in _TOOLS_BLOCK.finditer(text):
        try:
            end = _block_end(text, tag.end())
            tools = read_tools(text[tag.end() : end])
        except ValueError as error:
            problem = problem or error
        else:
            return text[: tag.start()], tools, text[text.index("</tools>", end) + len("</tools>") :]
    if problem:
        raise problem
    return text, None, ""


def _block_end(text: str, start: int) -> int:
    """Return where the tools' values end; they may be one list, or one object after the other."""
    position = start
    while text[position : position + 1] in ("[", "{"):
        end = find_end(text, position)
        if end is None:
            raise ValueError(
                f"expected a complete list of tools, got {shorten(text[position:])}; close every bracket"
            )
        position = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
    if not text.startswith("</tools>", position):
        raise ValueError(
            f"expected </tools> after the tools, got {shorten(text[position:]) or 'the end'}; close it"
        )
    return position


def read_model(
    raw: Mapping[str, Any], is_hermes: bool, tools: Sequence[Tool]
) -> tuple[Message, list[str]]:
    """Read a model's message and the names of the repairs that it took.

    Raises:
        ValueError: a broken call, a tag that is not closed or stands in the wrong place, or nothing at all.
    """
    text = text_of(content_of(raw))
    reply = assemble(split_text(text) if is_hermes else split_mistral(text), tools=tools)
    _refuse_problems(reply)
    calls, repairs = _read_raw_calls(raw, tools)
    thinking = (
        text_of(raw.get("reasoning_content") or raw.get("reasoning")).strip() or reply.thinking
    )
    is_trained = raw.get("weight") != 0 and raw.get("train") is not False
    message = Message("model", reply.content, thinking, (*reply.calls, *calls), trained=is_trained)
    if not (message.content or message.thinking or message.calls):
        raise ValueError(
            "expected text, thinking or a call, got an empty model message; remove the message"
        )
    return message, [*reply.repairs, *repairs]


def read_call(raw: Mapping[str, Any], tools: Sequence[Tool]) -> tuple[Message, list[str]]:
    """Read a ShareGPT `function_call` message, whose whole text is a call or a list of calls."""
    text = text_of(content_of(raw))
    segments = split_text(text) if "<tool_call>" in text else [Segment("call", text)]
    reply = assemble(segments, tools=tools)
    _refuse_problems(reply)
    return Message("model", reply.content, reply.thinking, reply.calls), list(reply.repairs)


def _refuse_problems(reply: Reply) -> None:
    problems = [f"{error.message}; {error.hint}" for error in reply.errors]
    problems += [
        f"expected balanced tags, got {STRUCTURAL[repair]}; close or remove it"
        for repair in dict.fromkeys(reply.repairs)
        if repair in STRUCTURAL
    ]
    if problems:
        raise ValueError(" / ".join(problems))


def _read_raw_calls(
    raw: Mapping[str, Any], tools: Sequence[Tool]
) -> tuple[list[ToolCall], list[str]]:
    """Read the calls that stand under `tool_calls` or `function_call`."""
    calls: list[ToolCall] = []
    repairs: list[str] = []
    for key in ("tool_calls", "function_call"):
        value = raw.get(key)
        if isinstance(value, str) and value.strip():
            outcomes, repair = read_calls(value, tools)
            _refuse_problems(Reply(outcomes=tuple(outcomes)))
            calls += [outcome for outcome in outcomes if not isinstance(outcome, CallError)]
            repairs += repair
            continue
        for item in value if isinstance(value, list | tuple) else [value] if value else []:
            call, repair = _read_raw_call(item, tools)
            calls.append(call)
            repairs += repair
    return calls, repairs


def _read_raw_call(item: Any, tools: Sequence[Tool]) -> tuple[ToolCall, list[str]]:
    """Read {"id", "function": {"name", "arguments"}} or the inner object; arguments as a string are normal here."""
    spec = (
        item.get("function")
        if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping)
        else item
    )
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str) or not spec["name"]:
        raise ValueError(
            f"expected a call with a function's name, got {shorten(repr(item))}; give name and arguments"
        )
    try:
        return make_call(spec["name"], spec.get("arguments"), tools, _label(item, "id"))
    except LiteralError as error:
        raise ValueError(f"{error}; {error.hint}") from None


def read_results(raw: Mapping[str, Any], is_hermes: bool) -> Message:
    """Read a tool's message: in Hermes rows one result per pair of tags, elsewhere the whole content is one result.

    Tags inside a result stay text. A result ends at the tag that closes the message or is followed by the next
    opening tag, so that a lone `</tool_response>` in the middle of a result does not end it.
    """
    content = content_of(raw)
    text = text_of(
        content
        if content is None or isinstance(content, str) or _is_parts(content)
        else _as_text(content)
    )
    name, id = _label(raw, "name"), _label(raw, "tool_call_id") or _label(raw, "id")
    stripped = text.strip()
    if not (is_hermes and stripped.startswith(_OPEN)):
        return Message("tool", results=(ToolResult(text, name, id),))
    if not stripped.endswith(_CLOSE):
        raise ValueError(
            f"expected </tool_response> at the end, got {shorten(stripped[-40:])}; close the tag"
        )
    results = _split_results(stripped)
    if len(results) > 1:
        name = id = None  # they belong to one call, and which one is not said
    return Message("tool", results=tuple(ToolResult(result, name, id) for result in results))


def _label(raw: Mapping[str, Any], key: str) -> str | None:
    """Return a name or an id. Raises ValueError if it is anything but text or absent."""
    value = raw.get(key)
    if not isinstance(value, str | None):
        raise ValueError(
            f"expected text under {key!r}, got {shorten(repr(value))}; write it as a string"
        )
    return value


def _is_parts(content: Any) -> bool:
    """True for OpenAI's text parts; another list is a result that came as data."""
    is_list = isinstance(content, list | tuple) and bool(content)
    return is_list and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )


def _as_text(data: Any) -> str:
    return json.dumps(check_value(data), ensure_ascii=False)


def _split_results(text: str) -> list[str]:
    """Cut `<tool_response>...</tool_response>` groups; a bracketed value is skipped whole, tags in its strings too."""
    results: list[str] = []
    position = 0
    while position < len(text):
        start = position + len(_OPEN)
        opening = start + len(text[start:]) - len(text[start:].lstrip())
        end = find_end(text, opening) if text[opening : opening + 1] in ("{", "[") else None
        gap = _BETWEEN_RESULTS.search(text, end or start)
        stop = gap.start() if gap else len(text) - len(_CLOSE)
        results.append(text[start:stop].strip())
        position = gap.end() - len(_OPEN) if gap else len(text)
    return results


def content_of(raw: Mapping[str, Any]) -> Any:
    """Return what the message says, under either of the keys that data sets use."""
    return raw["content"] if raw.get("content") is not None else raw.get("value")
