"""The roles of messages: their names in every form, and which may follow which."""

from collections.abc import Mapping
from typing import Any

from data.conversation import Message
from data.lenient_json import shorten

# "call" is a message that holds only a call, as in ShareGPT
ROLES = {
    # In the order in which an error lists them: the usual names first
    **{"user": "user", "assistant": "model", "tool": "tool", "system": "system"},
    **{"human": "user", "model": "model", "gpt": "model", "developer": "system"},
    **{"function_call": "call", "tool_call": "call", "function-call": "call", "tool-call": "call"},
    **{"observation": "tool", "function": "tool", "ipython": "tool"},
    **{"function_response": "tool", "tool_response": "tool"},
    **{"function-response": "tool", "tool-response": "tool"},
}
# "" is the beginning. A call as a message of its own begins or continues the model's turn. After a
# result the user may speak at once: an agent that was interrupted leaves such rows
NEXT = {
    "": ("system", "user"),
    "user": ("model", "call"),
    "model": ("user", "tool", "call"),
    "tool": ("model", "tool", "call", "user"),
}


def explain_place(raw: Any, role: str, previous: str) -> str:
    """Return what is wrong with a message's role, or with its place after the role `previous`."""
    if not isinstance(raw, Message | Mapping):
        return f"expected an object with role and content, got {shorten(repr(raw))}"
    given = raw.role if isinstance(raw, Message) else str(raw.get("role"))
    if not role:
        return f"expected a role out of {', '.join(ROLES)}, got {given!r}; rename it"
    if role == "system":
        return f"expected the system text as the first message, got {given!r} here; move it up"
    if role in NEXT[previous]:
        problem = f"expected the role user after a model message without a call, got {given!r}"
        return f"{problem}; give the call that this result answers"
    # Only what every form has: a call or a second result as a message of its own is special
    others = ("system", "call", previous)
    expected = " or ".join(name for name in NEXT[previous] if name not in others)
    after = f"after a {previous} message" if previous else "as the first turn"
    return f"expected the role {expected} {after}, got {given!r}; reorder or merge the messages"
