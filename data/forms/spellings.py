"""Chats that write calls and tools in a spelling of their own inside the text.

Glaive (`<functioncall> {...}`), When2Call (`<TOOLCALL>[...]</TOOLCALL>`) and ToolACE
(`[f(a=1), g()]`), with the tools as a list in the system text or in a column.
"""

import re
from collections.abc import Mapping
from typing import Any

from data.forms.chats import sharegpt
from data.forms.plain import PlainRow, flat, tools_of
from data.lenient_json import find_end, read_values, shorten
from data.roles import ROLES
from data.tool_calls import BETWEEN_TOOLS

# What gives such a text away, by the name that the table of forms has for it. A call in brackets is
# the whole text: a name, which may hold spaces, and arguments.
MARKS = re.compile(
    r"(?P<calls_in_text><functioncall>|<TOOLCALL>|\A\s*\[[^\[\]{}()\"'\n]+\(.*\)\]\s*\Z)"
    r"|(?P<tools_in_text>access to the following functions|JSON format that you can invoke)",
    re.DOTALL,
)
_GLAIVE_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
# Glaive puts JSON between single quotes, apostrophes in it and all
_QUOTED_ARGUMENTS = re.compile(r"""["']arguments["']\s*:\s*'(?P<json>.*)'\s*\}\s*\Z""", re.DOTALL)
_OPENING = re.compile(r"[\[{]")
_NAME = re.compile(r"""["']name["']\s*:\s*["'](?P<name>[^"']+)["']""")
_BRACKET_NAME = re.compile(r"[\s,]*([^()\[\]{}\"'=,]+?)\s*(?=\()")
_ARGUMENT = re.compile(r"[\s,]*([\w.-]+)\s*=\s*")
# A string or a run of what is neither a comma nor the beginning of a string or a bracket
_VALUE_PART = re.compile(r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|[^,"'\[({]+""", re.DOTALL)


def respelt(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """Any chat whose calls or tools are spelt otherwise than with Hermes' tags."""
    plain = sharegpt(row, messages)
    turns, tools = list(plain.messages), plain.tools
    system = row.get("system") or row.get("system_message")
    if system:
        turns.insert(0, {"role": "system", "content": system})
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    is_system = ROLES.get(str(first.get("role"))) == "system"
    text = str(first.get("content")) if is_system else ""
    if "<tools>" not in text and MARKS.search(text):
        # The words around such a list say how this data set writes its calls, which is not how
        # they are trained here: the wording of the wire format takes their place
        tools = tools or find_tools(text)
        turns[0] = {**first, "content": "" if tools else text}
    return PlainRow([_respell(turn) for turn in turns], tools, has_tags=plain.has_tags)


def preference(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """When2Call's pairs: {"messages", "chosen_response", "rejected_response"}; the chosen one."""
    return respelt(row, [*messages, row["chosen_response"]])


def glaive(row: Mapping[str, Any], _: list[Any]) -> PlainRow:
    """Glaive v2: {"system": "SYSTEM: ...", "chat": "USER: ... ASSISTANT: ... <|endoftext|>"}."""
    chat = row["chat"] if isinstance(row["chat"], str) else ""
    parts = _GLAIVE_TURN.split(chat)
    if len(parts) < 3 or parts[0].strip():
        got = shorten(chat) or "nothing"
        raise ValueError(f'chat: expected "USER: ..." first, got {got}; give the turns in order')
    system = str(row.get("system") or "").strip().removeprefix("SYSTEM:").strip()
    messages: list[Any] = [{"role": "system", "content": system}]
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        text = text.replace("<|endoftext|>", "").strip()
        messages.append({"role": _GLAIVE_ROLES[name], "content": text})
    return respelt({"tools": tools_of(row)}, messages)


def _respell(message: Any) -> Any:
    """Take the calls out of a model's text."""
    text = message.get("content") if isinstance(message, Mapping) else None
    role = ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
    if not isinstance(text, str) or role not in ("model", "call"):
        return message
    if "<functioncall>" in text:
        content, *bodies = text.split("<functioncall>")
        calls = [_read_glaive(body.replace("<|endoftext|>", "").strip()) for body in bodies]
    elif "<TOOLCALL>" in text:
        content, rest = text.split("<TOOLCALL>", 1)
        body, _, after = rest.partition("</TOOLCALL>")
        values, _ = read_values(body)
        calls = flat(values)
        content = f"{content.strip()}\n\n{after.strip()}".strip()
    elif MARKS.match(text) and text.strip().startswith("["):
        content, calls = "", read_bracket_calls(text)
    else:
        return message
    return {**message, "role": "assistant", "content": content.strip(), "tool_calls": calls}


def _read_glaive(body: str) -> dict[str, Any]:
    """Read one call whose arguments are JSON between single quotes. Raises: ValueError."""
    quoted, name = _QUOTED_ARGUMENTS.search(body), _NAME.search(body)
    if quoted and name:
        return {"name": name["name"], "arguments": quoted["json"]}
    values, _ = read_values(body)
    return values[0]


def read_bracket_calls(text: str) -> list[dict[str, Any]]:
    """Read `[f(a=1, b="x"), g()]`; names may hold spaces. Raises: ValueError for anything else."""
    body = text.strip()[1:-1]
    calls: list[dict[str, Any]] = []
    position = 0
    while match := _BRACKET_NAME.match(body, position):
        end = find_end(body, match.end())
        if end is None:
            break
        calls.append(
            {"name": match[1].strip(), "arguments": _arguments(body[match.end() + 1 : end - 1])}
        )
        position = end
    if not calls or body[position:].strip(" ,\n"):
        got = shorten(body[position:]) or "nothing"
        raise ValueError(f"expected calls such as [f(a=1)], got {got}; repair or remove the row")
    return calls


def _arguments(text: str) -> dict[str, Any]:
    """Read `a=1, b="x"`; the values are JSON or Python literals, never executed."""
    arguments: dict[str, Any] = {}
    position = 0
    while match := _ARGUMENT.match(text, position):
        start = position = match.end()
        while position < len(text) and text[position] != ",":
            if text[position] in "[({":
                end = find_end(text, position)
            else:
                part = _VALUE_PART.match(text, position)
                end = part.end() if part else None
            if end is None:
                raise ValueError(
                    f"expected a complete value, got {shorten(text[start:])}; close it"
                )
            position = end
        if match[1] in arguments:
            raise ValueError(f"expected each argument once, got {match[1]!r} twice; remove one")
        # In a list, because the reader of literals takes only lists and objects
        arguments[match[1]] = read_values(f"[{text[start:position]}]")[0][0][0]
    if text[position:].strip(" ,\n"):
        got = shorten(text[position:])
        raise ValueError(f"expected argument=value, got {got}; give every argument its name")
    return arguments


def find_tools(text: str) -> list[Any]:
    """Return the tools that a system text lists without any tag: objects, or lists of objects."""
    start = _OPENING.search(text)
    while start:
        tools: list[Any] = []
        position = start.start()
        # One list, or one object after the other
        while text[position : position + 1] in ("[", "{") and (end := find_end(text, position)):
            try:
                found = flat(read_values(text[position:end])[0])
            except ValueError:
                break
            if not all(isinstance(tool, Mapping) and "name" in tool for tool in found):
                tools = []
                break
            tools += found
            gap = BETWEEN_TOOLS.match(text, end)  # it matches the empty string too
            position = gap.end() if gap else end
        if tools:
            return tools
        start = _OPENING.search(text, start.end())
    return []
