"""Forms that are lists of messages: ShareGPT, OpenAI, Mistral, smolagents, Anthropic.

The course's own form has nothing to convert; `schema.py` has it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.forms.plain import PlainRow, flat, tools_of
from data.lenient_json import read_text, read_values, shorten

# smolagents' words before calls, and around a result
CALLING = "Calling tools:"
OBSERVATION = re.compile(r"\s*(?:Call id: (.+)\n)?Observation:")


def sharegpt(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """ShareGPT: {"conversations": [{"from": "gpt", "value": text with tags}], "system", "tools"}.

    The two columns, a system text and a list, may be absent.
    """
    # Under "messages" a tag is text, however the messages' own keys are called
    has_tags = row.get("conversations") is not None
    return PlainRow([_with_names(message) for message in messages], tools_of(row), has_tags)


def _with_names(message: Any) -> Any:
    """Give a message the keys role and content in place of from and value."""
    if not isinstance(message, Mapping):
        return message
    renamed = dict(message)
    for key, name in (("from", "role"), ("value", "content")):
        # Parquet gives every message all keys, with nulls
        if renamed.get(name) is None:
            renamed[name] = renamed.get(key)
    return renamed


def openai(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """OpenAI: {"messages": [{"role": "assistant", "content", "tool_calls": [...]}], "tools"}.

    Also read here: gpt-oss' `thinking`, Llama's role `ipython`, FunctionGemma's mobile actions.
    """
    return PlainRow(messages, row.get("tools") or None)  # an empty column is none


def mistral(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """Mistral: {"messages": [{"role": "assistant", "function_call": [...]}], "functions"}."""
    return PlainRow(messages, tools_of(row))


def smolagents(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """smolagents' memory: roles "tool-call" ("Calling tools:" and a list) and "tool-response"."""
    plain = []
    for message in messages:
        message = _with_names(message)
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("tool-call", "tool-response"):
            content = read_text(message.get("content"))
            if role == "tool-call":
                values, _ = read_values(content.strip().removeprefix(CALLING))
                calls = flat(values)
                message = {"role": "assistant", "content": "", "tool_calls": calls}
            else:
                match = OBSERVATION.match(content)
                text = content[match.end() :].strip() if match else content
                label = match[1] if match else None
                message = {"role": "tool", "content": text, "tool_call_id": label}
        plain.append(message)
    return PlainRow(plain, tools_of(row))


def anthropic(row: Mapping[str, Any], messages: list[Any]) -> PlainRow:
    """Anthropic: content as blocks of text, thinking, tool_use (a call) and tool_result."""
    plain: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            plain += _split_blocks(message, content)
        else:
            plain.append(message)
    return PlainRow(plain, tools_of(row))


def _split_blocks(message: Mapping[str, Any], blocks: Sequence[Any]) -> list[dict[str, Any]]:
    """Return one message's results, each as a message, and what else it says.

    Raises: ValueError for a block of another type.
    """
    results: list[dict[str, Any]] = []
    calls: list[Any] = []
    thoughts: list[str] = []
    texts: list[Any] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            result = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
            results.append({**result, "content": block.get("content")})
        elif kind == "tool_use":
            spec = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "function": spec})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "text":
            texts.append({"type": "text", "text": block.get("text")})
        elif kind != "redacted_thinking":  # encrypted: there is nothing to learn from it
            known = "text, thinking, tool_use or tool_result"
            raise ValueError(f"expected a block of {known}, got {shorten(repr(block))}; remove it")
    if not (texts or calls or thoughts) and results:
        return results
    rest = {**message, "content": texts, "tool_calls": calls}
    # The API wants results in front, and they answer the turn before
    return [*results, {**rest, "reasoning_content": "\n\n".join(thoughts)}]
