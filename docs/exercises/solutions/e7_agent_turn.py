"""Exercise 7, solved: a result for every call, errors among them."""

import json
from collections.abc import Callable

from data.conversation import Message, ToolCall, ToolResult
from data.tool_calls import CallError


def turn(
    chat: list[Message],
    write: Callable[[list[Message]], Message],
    tools: dict[str, Callable[..., object]],
) -> bool:
    """Lets the model write, runs what it calls, appends both; True if it has to write again."""
    reply = write(chat)
    chat.append(reply)
    if not reply.calls:
        return False
    results = [ToolResult(json.dumps(_run(call, tools)), call.name) for call in reply.calls]
    chat.append(Message("tool", results=tuple(results)))
    return True


def _run(call: ToolCall, tools: dict[str, Callable[..., object]]) -> object:
    if call.name not in tools:
        hint = f"use one of {', '.join(tools)}"
        return CallError("unknown_tool", f"there is no {call.name}", hint).as_result()
    try:
        return tools[call.name](**call.arguments)
    except Exception as error:  # a tool is anybody's code: whatever it raises, the chat goes on
        return CallError("tool_error", str(error), "change the arguments").as_result()
