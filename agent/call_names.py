"""Names that cannot be misspelt or left out: which bytes may follow while a model writes a call.

A scanner of lenient JSON, byte by byte. It forbids as little as it can: between a tool's name and
the names of its arguments a model writes what it likes, so that values stay its own, and one that
spells every name right, and forgets no required one, is never stopped. What it does forbid are the
spellings of a name or a key that would hide it from a scanner (an escape, a comment, two strings
side by side) although `data/lenient_json.py` might read them.

Tokens are longer than bytes: `agent/vocabulary.py` finds those whose bytes all pass.
"""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from data.conversation import Tool

# What is being written. A "key" is where one may begin, in a call or in its arguments; "bare" is
# within a value without quotes; "after" follows a whole string or a closing bracket.
Mode = Literal[
    "outside",
    "key",
    "call_key",
    "argument",
    "open_key",
    "colon",
    "name_value",
    "name",
    "arguments_value",
    "value",
    "bare",
    "string",
    "after",
]
# Here only some bytes may come, or some names: a call that ended here would have a broken name.
NAMING = frozenset({"argument", "colon", "name_value", "name", "arguments_value"})
SPACE, QUOTES, BACKSLASH = frozenset(b" \t\r\n"), frozenset(b"\"'"), ord("\\")
OPENING, CLOSING, COMMA, COLON, COMMENT = frozenset(b"{["), frozenset(b"}]"), *b",:#"
KEYS = (b"name", b"arguments")
OTHER_KEY = b"\0"
_CLOSES = {"l": ord("]"), "[": ord("]"), "c": ord("}"), "a": ord("}"), "{": ord("}")}


class State(NamedTuple):
    """Where a call has come to. A value, so that what may follow can be tried without harm."""

    mode: Mode
    # The open brackets, outermost first: "l" the list of calls, "c" a call, "a" its arguments, "{"
    # and "[" any other
    brackets: str
    tools: frozenset[int]  # the tools that this call may still be of
    quote: int = 0  # that closes the string
    text: bytes = b""  # of the name or key so far
    is_escaped: bool = False
    used: frozenset[bytes] = frozenset()  # arguments: a second one of a name breaks the call


def spell(name: str) -> bytes:
    """A name as it stands between the quotes of JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1].encode(errors="replace")


class CallNames:
    """The names on offer, and the scanner that holds a call to them."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.names = [spell(tool.name) for tool in tools]
        # None for a tool whose schema takes arguments that it does not name
        self.arguments: list[frozenset[bytes] | None] = []
        self.required: list[frozenset[bytes]] = []
        for tool in tools:
            known = frozenset(map(spell, tool.parameters.get("properties") or ()))
            is_open = bool(tool.parameters.get("additionalProperties"))
            self.arguments.append(None if is_open else known)
            # Without these no call of the tool can be run; of an open one not every key is seen
            needed = frozenset() if is_open else known.intersection(map(spell, tool.required))
            self.required.append(needed)
        self.start = State("outside", "", frozenset(range(len(tools))))

    def feed(self, state: State, data: bytes) -> State | None:
        """The state after these bytes; None if one of them may not come."""
        after: State | None = state
        for byte in data:
            if after is None:
                return None
            after = self._step(after, byte)
        return after

    def spellings(self, state: State) -> set[bytes]:
        """What may be written for the name or argument that has begun."""
        if state.mode == "name":
            return {self.names[tool] for tool in state.tools}
        known = {name for tool in state.tools for name in self.arguments[tool] or ()}
        return known - state.used

    def ends_early(self, state: State) -> bool:
        """Whether a value has just ended in arguments among which a required one has still to come.

        What ends the call there can be put off: the next argument may begin.
        """
        is_whole = state.mode in ("after", "bare")
        return is_whole and state.brackets[-1:] == "a" and not self._complete(state)

    def early_end(self, state: State, data: bytes) -> bytes | None:
        """What these bytes write before they end arguments too early; None if they do not."""
        for place, byte in enumerate(data):
            after = self._step(state, byte)
            if after is None:
                return data[:place] if byte == ord("}") and self.ends_early(state) else None
            state = after
        return None

    def _complete(self, state: State) -> frozenset[int]:
        """The tools of which all required arguments are there."""
        return frozenset(tool for tool in state.tools if self.required[tool] <= state.used)

    def _step(self, state: State, byte: int) -> State | None:
        mode = state.mode
        if mode == "string" or mode == "open_key":  # the longest stretches come first
            return self._in_string(state, byte)
        if mode in ("name", "argument"):
            return self._in_name(state, byte)
        if mode == "call_key":
            return self._in_call_key(state, byte)
        if mode == "outside":
            return self._outside(state, byte)
        if mode in ("value", "bare"):
            return self._in_value(state, byte)
        if byte in SPACE:
            return state
        if mode == "key":
            return self._at_key(state, byte)
        if mode == "colon":
            return self._at_colon(state, byte)
        if mode == "name_value":
            return state._replace(mode="name", quote=byte, text=b"") if byte in QUOTES else None
        if mode == "arguments_value":
            opened = state._replace(mode="key", brackets=state.brackets + "a", used=frozenset())
            return opened if byte == ord("{") else None
        # After a string: a second one beside it would be joined to it by Python
        return self._in_value(state, byte) if byte in CLOSING or byte in b",:" else None

    def _in_string(self, state: State, byte: int) -> State | None:
        if state.is_escaped:
            return state._replace(is_escaped=False)
        if byte == BACKSLASH:
            return state._replace(is_escaped=True)
        if byte != state.quote:
            return state
        if state.mode == "string":
            return state._replace(mode="after")
        # An argument that no schema names: the call can only be of a tool that takes such
        is_open = frozenset(tool for tool in state.tools if self.arguments[tool] is None)
        return state._replace(mode="colon", tools=is_open)

    def _in_name(self, state: State, byte: int) -> State | None:
        text = state.text
        if byte == state.quote and text in self.spellings(state):
            if state.mode == "name":
                tools = frozenset(tool for tool in state.tools if self.names[tool] == text)
                return state._replace(mode="after", tools=tools, text=b"")
            tools = frozenset(tool for tool in state.tools if text in (self.arguments[tool] or ()))
            used = state.used | {text}
            return state._replace(mode="colon", tools=tools, text=b"", used=used)
        text += bytes((byte,))
        is_begun = any(name.startswith(text) for name in self.spellings(state))
        return state._replace(text=text) if is_begun else None

    def _in_call_key(self, state: State, byte: int) -> State | None:
        if byte == state.quote:
            return state._replace(mode="colon")
        if byte == BACKSLASH:  # "n\u0061me" is "name" to whoever reads the call
            return None
        text = state.text + bytes((byte,))
        return state._replace(text=text if any(k.startswith(text) for k in KEYS) else OTHER_KEY)

    def _outside(self, state: State, byte: int) -> State | None:
        if byte in QUOTES or byte == COMMENT:
            return None
        if byte == ord("{"):
            tools = self.start.tools
            return state._replace(mode="key", brackets=state.brackets + "c", tools=tools)
        if byte == ord("["):
            is_first = not state.brackets
            deeper = state.brackets + ("l" if is_first else "[")
            return state._replace(mode="outside" if is_first else "value", brackets=deeper)
        return self._close(state, byte) if byte in CLOSING else state

    def _at_key(self, state: State, byte: int) -> State | None:
        if byte in CLOSING:
            return self._close(state, byte)
        if byte not in QUOTES:
            return None
        if state.brackets[-1] == "c":
            return state._replace(mode="call_key", quote=byte, text=b"")
        if any(self.arguments[tool] is None for tool in state.tools):
            return state._replace(mode="open_key", quote=byte)
        begun = state._replace(mode="argument", quote=byte, text=b"")
        return begun if self.spellings(begun) else None

    def _at_colon(self, state: State, byte: int) -> State | None:
        if byte != COLON:
            return None
        values: dict[bytes, Mode] = {b"name": "name_value", b"arguments": "arguments_value"}
        is_call = state.brackets[-1] == "c"
        return state._replace(mode=values.get(state.text, "value") if is_call else "value")

    def _in_value(self, state: State, byte: int) -> State | None:
        if byte in QUOTES:
            return state._replace(mode="string", quote=byte)
        if byte in OPENING:
            return state._replace(mode="value", brackets=state.brackets + chr(byte))
        if byte in CLOSING:
            return self._close(state, byte)
        if byte == COMMA:
            return state._replace(mode="value" if state.brackets[-1] in "{[" else "key")
        if byte == COLON:  # in a call and its arguments the colon comes before the value
            return state._replace(mode="value") if state.brackets[-1] in "{[" else None
        if byte == COMMENT:
            return None
        return state if byte in SPACE else state._replace(mode="bare")

    def _close(self, state: State, byte: int) -> State | None:
        if not state.brackets or byte != _CLOSES[state.brackets[-1]]:
            return None
        if state.brackets[-1] == "a":
            state = state._replace(tools=self._complete(state))
            if not state.tools:
                return None
        rest = state.brackets[:-1]
        is_outside = rest in ("", "l")
        return state._replace(mode="outside" if is_outside else "after", brackets=rest, text=b"")
