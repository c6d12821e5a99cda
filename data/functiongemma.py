"""FunctionGemma's values, which are no JSON: written as pieces, and read from them.

    declaration:NAME{description:<escape>...<escape>,parameters:{...}}    a tool
    call:NAME{city:<escape>Paris<escape>,days:3}                          a call
    response:NAME{temperature:15,weather:<escape>sunny<escape>}           a result

A string lies between two <escape> tokens, whatever characters it has; keys are bare and in
alphabetical order, numbers and constants JSON's, a schema's types in capitals. A name or key that
would not be read back bare, for which the format has no rule, is written as a string is.
Source: "FunctionGemma formatting and best practices", ai.google.dev/gemma/docs/functiongemma.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from data.conversation import Tool, ToolCall, ToolResult
from data.lenient_json import MAX_CHARS, MAX_DEPTH, LiteralError, load_json, shorten
from data.pieces import Body, Piece, Tag, join_texts
from data.tool_calls import Outcome, error_for, make_call

ESCAPE = Tag("<escape>")
WORDING = "You are a model that can do function calling with the following functions"
_MARKS = re.compile(r"[{}\[\]:,]")
_BARE_KEY = re.compile(r"[^{}\[\]:,\s](?:[^{}\[\]:,]*[^{}\[\]:,\s])?")
_BARE_NAME = re.compile(r"[^{\s](?:[^{]*[^{\s])?")
# Keywords of a schema whose value is a schema, a list of schemas, or schemas by name
_ONE, _SEVERAL = ("items", "additionalProperties", "not"), ("anyOf", "oneOf", "allOf")
_NAMED = ("properties", "$defs", "definitions")


def write_tools(tools: Iterable[Tool]) -> list[Body]:
    """One declaration for each tool."""
    return [_named("declaration", tool.name, _declared(tool)) for tool in tools]


def _declared(tool: Tool) -> dict[str, Any]:
    spec: dict[str, Any] = {"description": tool.description} if tool.description else {}
    return spec | {"parameters": _in_capitals(tool.parameters)} | tool.extras


def _in_capitals(schema: Any) -> Any:
    """A JSON schema with its types in capitals, at every level."""
    if not isinstance(schema, Mapping):
        return schema
    written = dict(schema)
    # Only through keywords: an argument may be NAMED type, and a default may hold one as data
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            written[key] = value.upper()
        elif key == "type" and isinstance(value, list):
            written[key] = [item.upper() if isinstance(item, str) else item for item in value]
        elif key in _ONE:
            written[key] = _in_capitals(value)
        elif key in _SEVERAL and isinstance(value, list):
            written[key] = [_in_capitals(item) for item in value]
        elif key in _NAMED and isinstance(value, Mapping):
            written[key] = {name: _in_capitals(item) for name, item in value.items()}
    return written


def write_calls(calls: Sequence[ToolCall]) -> list[Body]:
    """One block for each call."""
    return [_named("call", call.name, call.arguments) for call in calls]


def write_result(result: ToolResult) -> Body:
    """A result that is a JSON object by its keys; any other text as the one value of an object."""
    try:
        value = load_json(result.content)
    except ValueError:
        value = None
    value = value if isinstance(value, dict) else {"value": result.content}
    return _named("response", result.name or "unknown", value)


def _named(kind: str, name: str, value: Mapping[str, Any]) -> list[Piece]:
    named = (name,) if _BARE_NAME.fullmatch(name) else (ESCAPE, name, ESCAPE)
    return [f"{kind}:", *named, *_write(value)]


def _write(value: Any) -> Iterator[Piece]:
    if isinstance(value, str):
        yield from (ESCAPE, value, ESCAPE)
    elif isinstance(value, Mapping):
        yield "{"
        # As Jinja's dictsort does: capitals do not count, and equals keep their order
        pairs = sorted(value.items(), key=lambda pair: str(pair[0]).lower())
        for number, (key, item) in enumerate(pairs):
            yield "," if number else ""
            yield from (key,) if _BARE_KEY.fullmatch(key) else (ESCAPE, key, ESCAPE)
            yield ":"
            yield from _write(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for number, item in enumerate(value):
            yield "," if number else ""
            yield from _write(item)
        yield "]"
    else:
        yield json.dumps(value)


def read_call(body: Sequence[Piece], tools: Iterable[Tool] = ()) -> tuple[list[Outcome], list[str]]:
    """Read a call's pieces into one outcome and the names of what was mended; never raises.

    A word without its <escape> that is no JSON is taken as a string, as models forget the marks.
    """
    name: str | None = None
    try:
        name, rest = _split_name(join_texts(body))
        reader = _Reader(rest)
        call, repairs = make_call(name, reader.value(), tools)
        reader.end()
    except LiteralError as error:
        return [error_for(error.code, str(error), name)], []
    return [call], reader.repairs + repairs


def _split_name(body: Sequence[Piece]) -> tuple[str, list[Piece]]:
    """The name behind `call:`, and the pieces behind it."""
    opening = body[0] if body and isinstance(body[0], str) else ""
    before, colon, rest = opening.partition(":")
    if before.strip() != "call" or not colon:
        _refuse(f"expected call:NAME{{...}}, got {shorten(''.join(map(str, body)))}")
    if not rest.strip() and len(body) > 3 and body[1] == body[3] == ESCAPE:
        return str(body[2]), list(body[4:])
    name, brace, arguments = rest.partition("{")
    if not name.strip():
        raise LiteralError("missing_name", "expected a tool's name behind call:, got none")
    return name.strip(), [brace + arguments, *body[1:]]


class _Reader:
    """Tokens of a call from left to right: strings, the six marks, and bare words between them."""

    def __init__(self, body: Sequence[Piece]) -> None:
        self.repairs: list[str] = []
        self.tokens = list(_tokens(body))
        self.place = 0

    def _next(self) -> tuple[str, str]:
        """The kind of the next token (string, mark, word, end), and its text."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "nothing")
        self.place += 1
        return token

    def _expect(self, *marks: str) -> str:
        kind, text = self._next()
        if kind != "mark" or text not in marks:
            _refuse(f"expected {' or '.join(marks)}, got {shorten(text)}")
        return text

    def value(self, depth: int = 0) -> Any:
        """The value that begins here."""
        # Each level recurses: some hundred brackets would raise, where `read_call` promises not to
        if depth > MAX_DEPTH:
            raise LiteralError("too_deep", f"expected at most {MAX_DEPTH} levels, got more")
        kind, text = self._next()
        if kind == "string":
            return text
        if (kind, text) == ("mark", "{"):
            return self._object(depth)
        if (kind, text) == ("mark", "["):
            return self._list(depth)
        if kind != "word":
            _refuse(f"expected a value, got {shorten(text)}")
        try:
            return load_json(text)
        # Not ValueError: NaN and over-long numbers are refused, and must not turn into strings
        except json.JSONDecodeError:
            self.repairs.append("bare_string")
            return text

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._is_next("}"):
            return found
        while True:
            kind, key = self._next()
            if kind not in ("string", "word"):
                _refuse(f"expected a key, got {shorten(key)}")
            if key in found:
                raise LiteralError("duplicate_key", f"expected each key once, got {key!r} twice")
            self._expect(":")
            found[key] = self.value(depth + 1)
            if self._expect(",", "}") == "}":
                return found

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        if self._is_next("]"):
            return found
        while True:
            found.append(self.value(depth + 1))
            if self._expect(",", "]") == "]":
                return found

    def _is_next(self, mark: str) -> bool:
        is_next = self.place < len(self.tokens) and self.tokens[self.place] == ("mark", mark)
        self.place += is_next
        return is_next

    def end(self) -> None:
        """Refuses what follows the call."""
        if self.place < len(self.tokens):
            _refuse(f"expected the end of the call, got {shorten(self.tokens[self.place][1])}")


def _tokens(body: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Cut pieces into tokens. Raises: LiteralError for other tags, or a string without an end."""
    if sum(len(piece) for piece in body if isinstance(piece, str)) > MAX_CHARS:
        raise LiteralError("too_long", f"expected at most {MAX_CHARS} characters, got more")
    string: list[str] | None = None
    for piece in body:
        if isinstance(piece, Tag):
            if piece != ESCAPE:
                raise LiteralError("control_token", f"expected plain text, got {piece}")
            if string is not None:
                yield "string", "".join(string)
            string = [] if string is None else None
        elif string is not None:
            string.append(piece)
        else:
            yield from _bare_tokens(piece)
    if string is not None:
        _refuse("expected a second <escape> behind a string, got none")


def _bare_tokens(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    for match in _MARKS.finditer(text):
        if word := text[start : match.start()].strip():
            yield "word", word
        yield "mark", match.group()
        start = match.end()
    if word := text[start:].strip():
        yield "word", word


def _refuse(problem: str) -> NoReturn:
    raise LiteralError("invalid_call", problem)
