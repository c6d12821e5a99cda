"""Exercise 6, solved: JSON says where a call ends, and the next tag is looked for behind that."""

import json

from data.conversation import ToolCall
from data.tool_calls import Outcome, error_for

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read_calls(reply: str) -> list[Outcome]:
    """A ToolCall for each call, or the CallError `error_for("invalid_json", why)`; never raises."""
    outcomes: list[Outcome] = []
    place = 0
    while (tag := reply.find(OPEN, place)) >= 0:
        start = tag + len(OPEN)
        start += len(reply[start:]) - len(reply[start:].lstrip())
        try:
            value, place = json.JSONDecoder().raw_decode(reply, start)
            outcomes.append(ToolCall(value["name"], value["arguments"]))
        except (ValueError, KeyError, TypeError) as error:
            outcomes.append(error_for("invalid_json", str(error)))
            # Nothing tells where a broken call ends but its closing tag.
            end = reply.find(CLOSE, start)
            place = end if end >= 0 else len(reply)
    return outcomes
