"""Values that a model or a data set wrote, read as JSON or else as Python literals, never executed.

Separate because everything that touches untrusted text passes here: length, depth and number caps
come before any parser, duplicate keys, NaN and Infinity are refused, and every leniency is named so
that it can be counted.
"""

import ast
import json
import math
import re
import warnings
from collections import Counter
from string import ascii_letters
from typing import Any

MAX_CHARS = 200_000
MAX_DEPTH = 64
MAX_DIGITS = 64
MAX_ROW = 2_000_000  # characters and values of a row, which make half a million tokens

# A whole string (either quote), a bracket, an escape outside of strings, or a quote that never
# closes. The possessive `*+` keeps the scan linear. The escape has its place because a scan that
# starts elsewhere in the text must see the same quotes: with them and the depth bounded, many scans
# of one text stay linear together.
_SCAN = re.compile(r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|\\.|[\[\]{}()"']""", re.DOTALL)
_GAP = re.compile(r"[\s,;]*")
_JSON_NAMES = {"true": True, "false": False, "null": None}

HINTS = {
    "invalid_json": 'Write one JSON object: {"name": "...", "arguments": {...}}.',
    "not_an_object": 'Write one JSON object: {"name": "...", "arguments": {...}}.',
    "duplicate_key": "Write each key once.",
    "not_finite": "Use a finite number or null.",
    "number_too_long": f"Write at most {MAX_DIGITS} digits, or pass the number as a string.",
    "too_long": f"Write at most {MAX_CHARS} characters.",
    "too_deep": f"Nest at most {MAX_DEPTH} levels.",
    "invalid_unicode": "Escape characters beyond U+FFFF as a complete surrogate pair.",
    "invalid_call": "Write call:NAME{argument:value}, and each string between <escape> marks.",
    "missing_name": 'Give the tool\'s name under the key "name".',
    "missing_arguments": 'Give the arguments as an object under the key "arguments".',
    "arguments_not_object": 'Give the arguments as an object: {"argument": value}.',
    "too_many_calls": "Make fewer calls at once.",
    "truncated": "The reply was cut before the call was complete; write a shorter one.",
    "control_token": "Keep control tokens out of the call.",
}


class LiteralError(ValueError):
    """A value that cannot be accepted; `code` is a key of HINTS, whose hint is the usual one."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint or HINTS[code]


def find_end(text: str, start: int) -> int | None:
    """Return where the bracketed value that opens at `start` ends, or None if it never does.

    Brackets and tags inside quoted strings do not count, so a string may hold `</tool_call>` or
    `]`. A value that is nested too deep for any reader has no end either.
    """
    depth = 0
    for match in _SCAN.finditer(text, start):
        token = match.group()
        if len(token) > 1:
            continue
        if token in "\"'" or depth > MAX_DEPTH:
            return None
        depth += 1 if token in "[{(" else -1
        if depth == 0:
            return match.end()
    return None


def _is_too_deep(text: str, start: int) -> bool:
    """True if more than MAX_DEPTH brackets are open somewhere after `start`, before a quote is."""
    depth = 0
    for match in _SCAN.finditer(text, start):
        token = match.group()
        if token in "\"'" or depth > MAX_DEPTH:
            break
        depth += len(token) == 1 and (1 if token in "[{(" else -1)
    return depth > MAX_DEPTH


def read_values(text: str) -> tuple[list[Any], list[str]]:
    """Read the objects and lists that `text` consists of, usually exactly one.

    Also returns the names of the repairs that were needed: "code_fence", "several_values",
    "control_character" (a raw newline in a string) and "python_literal" (single quotes, True, a
    trailing comma).

    Raises: LiteralError for text that is no object or list, or that breaks a cap.
    """
    if len(text) > MAX_CHARS:
        raise LiteralError("too_long", f"expected at most {MAX_CHARS} characters, got {len(text)}")
    body = text.strip()
    repairs: list[str] = []
    values: list[Any] = []
    # Longer than two bare fences
    if len(body) > 6 and body.startswith("```") and body.endswith("```"):
        body = body[3:-3].lstrip(ascii_letters).strip()
        repairs.append("code_fence")
    # An empty text enters once, for its error
    position = 0
    while position < len(body) or not values:
        if body[position : position + 1] not in ("{", "["):
            got = shorten(body[position:]) or "nothing"
            raise LiteralError("not_an_object", f"expected a JSON object, got {got}")
        # Before any parser: both of Python's recurse, and a few thousand brackets exhaust its stack
        end = find_end(body, position)
        if end is None and _is_too_deep(body, position):
            raise LiteralError("too_deep", f"expected at most {MAX_DEPTH} nested levels, got more")
        if end is None:
            got = shorten(body[position:])
            raise LiteralError("invalid_json", f"expected a complete JSON object, got {got}")
        value, repair = _read_one(body[position:end])
        values.append(value)
        repairs += [repair] if repair else []
        gap = _GAP.match(body, end)  # the pattern matches the empty string, so there is a match
        position = gap.end() if gap else end
    if len(values) > 1:
        repairs.append("several_values")
    return values, repairs


def load_json(text: str, strict: bool = True) -> Any:
    """Load JSON without duplicate keys, infinite numbers, over-long integers and half characters.

    Raises: LiteralError for valid JSON that is refused, json.JSONDecodeError for text that is no
    JSON.
    """
    # Python's defaults would let the last of two equal keys win, and take NaN and any number of
    # digits
    try:
        value = json.loads(
            text,
            strict=strict,
            object_pairs_hook=unique_keys,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
        )
    except RecursionError:
        raise LiteralError(
            "too_deep", f"expected at most {MAX_DEPTH} nested levels, got more"
        ) from None
    return check_value(value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, as json's `object_pairs_hook`. Raises: LiteralError for one key twice."""
    # dict keeps the last of equal keys; which one was meant cannot be known
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise LiteralError("duplicate_key", f"expected each key once, got {shorten(twice)} twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise LiteralError("not_finite", f"expected a finite number, got {name}")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise LiteralError("not_finite", f"expected a finite number, got {number}")
    return number


def _bounded_int(digits: str) -> int:
    # int() is quadratic in the digits, and Python itself refuses more than 4,300
    if len(digits.lstrip("-")) > MAX_DIGITS:
        got = len(digits.lstrip("-"))
        raise LiteralError("number_too_long", f"expected at most {MAX_DIGITS} digits, got {got}")
    return int(digits)


def check_value(value: Any) -> Any:
    """Return a value that can be rendered as JSON and encoded as tokens.

    Raises: LiteralError for half a surrogate pair (no tokenizer can encode it), NaN, a type that
    JSON lacks, and as `check_size`.
    """
    check_size(value)
    # Encoding is the test: it is what rendering will do
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise LiteralError(
            "invalid_unicode", "expected whole characters, got half of a surrogate pair"
        ) from None
    except (TypeError, RecursionError) as error:
        raise LiteralError(
            "invalid_json", f"expected a value that JSON can hold, got {error}"
        ) from None
    except ValueError:
        raise LiteralError("not_finite", "expected finite numbers, got NaN or Infinity") from None
    return value


def check_size(value: Any) -> None:
    """Bound what any reader of `value` may have to do.

    Raises: LiteralError for more than MAX_DEPTH levels, or more than MAX_ROW characters and values.
    """
    # Level by level: a recursion would be what it is to prevent
    level, size, depth = [value], 0, 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str | bytes):
                size += len(item)
        level, depth, size = below, depth + 1, size + len(below)
        if size > MAX_ROW:
            raise LiteralError("too_long", f"expected at most {MAX_ROW} characters, got more")
        if level and depth > MAX_DEPTH:
            raise LiteralError("too_deep", f"expected at most {MAX_DEPTH} nested levels, got more")


class _JsonNames(ast.NodeTransformer):
    """Turns JSON's `true`, `false` and `null` inside an otherwise Pythonic dict into constants."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in _JSON_NAMES:
            return node
        return ast.copy_location(ast.Constant(_JSON_NAMES[node.id]), node)


def _read_one(text: str) -> tuple[Any, str]:
    """Read one value, and name the repair that it needed, "" for none."""
    # Strict first: what is valid JSON must never be read as anything else
    for strict, repair in ((True, ""), (False, "control_character")):
        try:
            return load_json(text, strict), repair
        except json.JSONDecodeError as error:
            problem = error
    try:
        with warnings.catch_warnings():
            # An unknown escape such as "\d" is only a SyntaxWarning, printed for each row
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
        # literal_eval would let the last of two equal keys win in silence
        for node in ast.walk(tree):
            # A hexadecimal number has no limit of its own, and Python refuses to write it out
            if isinstance(node, ast.Constant) and isinstance(node.value, int):
                if node.value >= 10**MAX_DIGITS:
                    raise LiteralError(
                        "number_too_long", f"expected at most {MAX_DIGITS} digits, got more"
                    )
            if isinstance(node, ast.Dict):
                keys = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]
                unique_keys([(key, None) for key in keys])
        value = ast.literal_eval(_JsonNames().visit(tree).body)
    except LiteralError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        # JSON's error is the clearer one where Python's syntax does not fit either
        message = f"expected JSON, got {shorten(text)} ({problem.msg} at character {problem.pos})"
        raise LiteralError("invalid_json", message) from None
    return check_value(_as_json(value)), "python_literal"


def _as_json(value: Any) -> Any:
    """Make a literal a JSON value: a tuple becomes a list; bytes, sets and the like are refused."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return _finite(value)
    # True is an int in Python, which is why bool comes first
    if isinstance(value, int):
        return _bounded_int(str(value))
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_json(item) for key, item in value.items()}
    raise LiteralError(
        "invalid_json", f"expected a value that JSON can hold, got {shorten(repr(value))}"
    )


def read_text(content: Any) -> str:
    """Return a message's text: a string, null, or a list of {"type": "text", "text": ...} parts.

    Raises: ValueError for any other content, or half of a surrogate pair.
    """
    # Joined without a space: the parts are cuts through one text
    texts = []
    for part in content if isinstance(content, list | tuple) else [content]:
        # An object without the key "text" would be an empty text, and nobody would notice
        is_text_part = isinstance(part, dict) and part.get("type", "text") == "text"
        text = part["text"] if is_text_part and "text" in part else part
        if not isinstance(text, str | None):
            got = shorten(repr(part))
            problem = f"expected text, got {got}; only text parts can be trained on"
            raise ValueError(f"{problem}: write data as a string of JSON, a call under tool_calls")
        texts.append(text or "")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "expected whole characters, got half of a surrogate pair; repair the encoding"
        ) from None
    return "".join(texts)


def shorten(text: str, limit: int = 60) -> str:
    """Quote the beginning of `text` for a message."""
    text = begin(text, limit)
    return repr(text) if text else ""


def begin(text: str, limit: int = 60) -> str:
    """Return the beginning of `text` on one line, as it is: JSON has quotes of its own."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
