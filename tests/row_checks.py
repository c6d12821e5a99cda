"""What the tests of function-calling rows share: the tools and calls of a row, whether a call fits,
and what no person writes."""

import json
import re
from collections.abc import Iterator
from typing import Any

from embedded.english.rows import Row

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
TOOLS = re.compile(r"<tools> (\[.*\]) </tools>", re.DOTALL)
TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
BLOCK = re.compile(r"<(tools|tool_call|tool_response)>.*?</\1>", re.DOTALL)  # JSON, not prose
FAULTS = {
    "a slot or code": re.compile(r"[{}\\]|\\n|\bNone\b(?! fits|, but)|def \w+\(|</?\w+>"),
    "spaces": re.compile(r"  | [,.;:?!](?= |$)|^\s|\s$|\t"),
    "a line break": re.compile(r"\n[ \t]"),  # people write lists, a line each, but no code
    "a doubled word": re.compile(r"\b(and|the|a|to|of|with|for|in|is) \1\b"),
    "a before a vowel": re.compile(r"\b[Aa] (?!is\b)(?=[aeio]|u[^aeiou][^aeiou])"),
    "a before many": re.compile(r"\b[Aa] (guests|people|days|minutes|eggs|adults|children)\b"),
}


def faults(text: str) -> list[str]:
    """What is wrong with a text of prose."""
    found = [name for name, pattern in FAULTS.items() if pattern.search(text)]
    return found + ["quotes"] * (text.count('"') % 2)


def prose(row: Row) -> Iterator[tuple[str, str]]:
    """(where, text) of each message but the tools' own, without thoughts' tags and JSON."""
    for number, message in enumerate(row["conversations"], start=1):
        if message["role"] != "tool":
            text = BLOCK.sub("", message["content"]).replace("</think>", " ")
            yield f"{row['id']}: message {number}", text.replace("<think>", "").strip()


def tools_of(row: Row) -> dict[str, Any]:
    match = TOOLS.search(row["conversations"][0]["content"])
    assert match
    tools = json.loads(match[1])
    assert len({tool["name"] for tool in tools}) == len(tools)
    return {tool["name"]: tool for tool in tools}


def calls_of(row: Row) -> Iterator[dict[str, Any]]:
    for message in row["conversations"]:
        if message["role"] == "model":
            yield from (json.loads(text) for text in CALL.findall(message["content"]))


def check_call(call: dict[str, Any], tools: dict[str, Any]) -> None:
    """Against parameters in short ("integer?" is optional, a list may be) or as a JSON schema."""
    parameters = tools[call["name"]]["parameters"]
    texts = {name: kind for name, kind in parameters.items() if isinstance(kind, str)}
    needed = [name for name, kind in texts.items() if not kind.endswith("?")]
    if "properties" in parameters:
        needed, parameters = parameters["required"], parameters["properties"]
    assert set(needed) <= set(call["arguments"])
    assert list(call["arguments"]) == [name for name in parameters if name in call["arguments"]]
    for name, value in call["arguments"].items():
        kind = parameters[name]
        allowed: Any = kind.get("enum", kind["type"]) if isinstance(kind, dict) else kind
        if isinstance(allowed, list):
            assert value in allowed, (call, parameters)
        else:
            assert isinstance(value, TYPES[allowed.removesuffix("?")])
